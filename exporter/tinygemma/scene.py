"""The scene of a story: the value of every slot that the sentences use, facts of the world included.

Seeded and stdlib only. A scene is a plain dictionary: the hero's slots stay for the whole story, the others change
with each episode.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from kvparity.exporter.tinygemma.grammar import CREATURES, FACTS, WORDS

__all__ = ["Scene", "draw", "new_cast", "set_episode"]

T = TypeVar("T")
Scene = dict[str, str]

_SKEW = 1.6
_PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}
_GAME_OF = {
    name: WORDS["games"][number % len(WORDS["games"])]
    for number, name in enumerate([*WORDS["girls"], *WORDS["boys"], *(name for _, name in CREATURES)])
}

_EPISODE_SLOTS: dict[tuple[str, ...], Sequence[str]] = {
    ("place", "place2", "place3"): WORDS["places"],
    ("thing",): WORDS["things"],
    ("thing2",): tuple(FACTS["things"]),
    ("things",): WORDS["countables"],
    ("adj", "adj2"): WORDS["adjectives"],
    ("colour", "colour2"): WORDS["colours"],
    ("animal", "animal2"): WORDS["animals"],
    ("food",): tuple(FACTS["foods"]),
    ("food2",): WORDS["foods"],
    ("dish",): WORDS["dishes"],
    ("trait2",): WORDS["traits"],
    ("feeling",): WORDS["feelings"],
    ("weather",): WORDS["weather"],
    ("job",): tuple(FACTS["jobs"]),
    ("season",): WORDS["season"],
    ("season2",): WORDS["season2"],
    ("wheels",): WORDS["wheels"],
    ("keepbed",): WORDS["keepbed"],
}
"""Slots of an episode and the list they draw from; the slots of one row get different values."""


def draw(rng: random.Random, options: Sequence[T]) -> T:
    """An entry of the list, the first ones more often: a power law, as words have in real text."""
    return options[int(len(options) * rng.random() ** _SKEW)]


def _draw_distinct(rng: random.Random, options: Sequence[str], count: int) -> list[str]:
    """As many different entries, each drawn as `draw` does."""
    drawn: list[str] = []
    while len(drawn) < count:
        value = draw(rng, options)
        if value not in drawn:
            drawn.append(value)
    return drawn


def new_cast(rng: random.Random) -> Scene:
    """What stays for the whole story: the hero, the home, the elder, the keepsake."""
    name, kind, pronoun = _person(rng)
    he, him, his, himself = _PRONOUNS[pronoun]
    home, elder, trait = draw(rng, WORDS["homes"]), draw(rng, WORDS["grown_ups"]), draw(rng, WORDS["traits"])
    return {
        "hero": name,
        "kind": kind,
        "he": he,
        "him": him,
        "his": his,
        "himself": himself,
        "game": _GAME_OF[name],
        "trait": trait,
        "deed": FACTS["traits"][trait][0],
        "home": home,
        "home_the": "the " + home.split(" ", 1)[1],
        "elder": elder,
        "habit": FACTS["grown_ups"][elder][0],
        "kcolour": draw(rng, WORDS["colours"]),
        "keepsake": draw(rng, WORDS["keepsakes"]),
    }


def set_episode(rng: random.Random, scene: Scene) -> None:
    """Fills in what changes with each episode; the friend of the last episode often comes along."""
    if "friend" not in scene or rng.random() < 0.5:
        name, kind, pronoun = _person(rng, scene["hero"])
        scene |= {"friend": name, "fkind": kind, "game2": _GAME_OF[name]}
        scene["fhe"], scene["fhim"], scene["fhis"], _ = _PRONOUNS[pronoun]
    scene["extra"] = _person(rng, scene["hero"], scene["friend"])[0]
    for slots, options in _EPISODE_SLOTS.items():
        scene |= dict(zip(slots, _draw_distinct(rng, options, len(slots)), strict=True))
    _set_facts(rng, scene)
    _set_numbers(rng, scene)


def _set_facts(rng: random.Random, scene: Scene) -> None:
    """What the world says about the animals, places, jobs and things of the episode."""
    for suffix in ("", "2"):
        facts = FACTS["animals"][scene["animal" + suffix]]
        scene |= dict(zip([slot + suffix for slot in ("sound", "lair", "meal", "moves")], facts, strict=True))
    scene["sight"], scene["sight2"] = rng.sample(FACTS["places"][scene["place"]], 2)
    scene["tool"], scene["work"] = FACTS["jobs"][scene["job"]]
    scene["use2"] = FACTS["things"][scene["thing2"]][0]
    scene["taste"] = FACTS["foods"][scene["food"]][0]
    scene["simile"] = FACTS["colours"][scene["colour"]][0]
    for number, thing in enumerate(rng.sample(WORDS["things"], 3), start=1):
        scene[f"item{number}"] = f"a {thing}"


def _set_numbers(rng: random.Random, scene: Scene) -> None:
    """Counts, hours, days and secret words: nothing to know, only to remember."""
    numbers, number = WORDS["numbers"], rng.randrange(2, 8)
    scene["n"], scene["less"] = numbers[number - 1], numbers[number - 2]
    scene["count"] = ", ".join(numbers[:number]).capitalize()
    scene["n2"] = draw(rng, numbers[1:])
    scene["hour"] = f"{rng.choice(numbers[2:9])} o'clock"
    day = rng.randrange(7)
    for offset, slot in enumerate(("day", "day2", "day3")):
        scene[slot] = WORDS["days"][(day + offset) % 7]
    for slot in ("secret", "secret2"):
        scene[slot] = "".join(rng.choices(WORDS["syllables"], k=3))


def _person(rng: random.Random, *taken: str) -> tuple[str, str, str]:
    """(name, kind, "she" or "he") of a child or, one time in four, of an animal with a name not yet taken."""
    pronoun = "she" if rng.random() < 0.55 else "he"
    if rng.random() < 0.25:
        kind, name = draw(rng, CREATURES)
    else:
        kind, names = ("girl", WORDS["girls"]) if pronoun == "she" else ("boy", WORDS["boys"])
        name = draw(rng, names)
    return _person(rng, *taken) if name in taken else (name, kind, pronoun)
