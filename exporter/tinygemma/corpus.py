"""TinyStories-style text from a seeded grammar: the same seed gives the same stories on every machine.

A story is an opening, one to six episodes (each a plot with its own place, things and companions) and a closing. The
opening tells facts (name, home, a coloured keepsake) that long stories repeat at the end, hundreds of tokens later:
only a full-attention layer can carry them there, since the sliding window is 128.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from exporter.tinygemma import frames, lexicon, plots

__all__ = ["stories", "story", "words"]

T = TypeVar("T")

_SKEW = 1.6
_EPISODE_WEIGHTS = (50, 20, 12, 8, 6, 4)
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}

_EPISODE_SLOTS: dict[str, Sequence[str]] = {
    "place": lexicon.PLACES,
    "place2": lexicon.PLACES,
    "thing": lexicon.THINGS,
    "adj": lexicon.ADJECTIVES,
    "colour": lexicon.COLOURS,
    "colour2": lexicon.COLOURS,
    "animal": lexicon.ANIMALS,
    "food": lexicon.FOODS,
    "dish": lexicon.DISHES,
    "trait2": lexicon.TRAITS,
    "feeling": lexicon.FEELINGS,
    "weather": lexicon.WEATHER,
    "season": ("spring", "summer", "winter", "snow"),
    "wheels": ("wheels", "engine"),
    "keepbed": ("bed", "blanket", "basket", "box"),
}

Scene = dict[str, str]


def words(text: str) -> list[str]:
    """The words of a text in lower case, apostrophes kept: `"Don't go!"` gives `["don't", "go"]`."""
    return [word.lower() for word in _WORD.findall(text)]


def stories(seed: int) -> Iterator[str]:
    """Endless stories; story number n of a seed never changes, however many are drawn."""
    rng = random.Random(seed)
    while True:
        yield story(rng)


def story(rng: random.Random) -> str:
    """One story: opening, episodes, closing; about 100 to 1,000 tokens of the tiny tokenizer.

    Args:
        rng: Source of every choice; two equal states give the same story.

    Returns:
        Plain text, a single paragraph per episode, paragraphs separated by a newline.
    """
    scene = _cast(rng)
    episodes = rng.choices(range(1, len(_EPISODE_WEIGHTS) + 1), _EPISODE_WEIGHTS)[0]
    opening = [_draw(rng, frames.OPENINGS)]
    if episodes > 1 or rng.random() < 0.4:
        opening.append(_draw(rng, frames.KEEPSAKE))
    paragraphs = []
    for number, plot in enumerate(rng.sample(plots.PLOTS, episodes)):
        _set_scene(rng, scene)
        lead = [*opening, _draw(rng, frames.SETTINGS)] if number == 0 else [_draw(rng, frames.LINKS)]
        beats = [*lead, *(_draw(rng, beat) for beat in plot.beats)]
        if number == episodes - 1:
            beats += _ending(rng, episodes, plot.moral)
        paragraphs.append(" ".join(_fill(rng, beat, scene) for beat in beats))
    return "\n".join(paragraphs)


def _draw(rng: random.Random, options: Sequence[T]) -> T:
    """An entry of the list, the first ones more often (a power law, see the lexicon)."""
    return options[int(len(options) * rng.random() ** _SKEW)]


def _ending(rng: random.Random, episodes: int, moral: str) -> list[str]:
    """Closing beats; long stories recall the facts of the opening."""
    if episodes > 1:
        return [_draw(rng, frames.LONG_CLOSINGS)]
    lesson = [f"{{hero}} learned {moral}."] if rng.random() < 0.35 else []
    return [*lesson, _draw(rng, frames.CLOSINGS)]


def _person(rng: random.Random) -> tuple[str, str, str]:
    """(name, kind, "she" or "he") of a child or, one time in four, of an animal with a name."""
    pronoun = "she" if rng.random() < 0.55 else "he"
    if rng.random() < 0.25:
        kind, name = _draw(rng, lexicon.CREATURES)
        return name, kind, pronoun
    return (
        (_draw(rng, lexicon.GIRLS), "girl", pronoun) if pronoun == "she" else (_draw(rng, lexicon.BOYS), "boy", pronoun)
    )


def _cast(rng: random.Random) -> Scene:
    """What stays for the whole story: the hero, the home, the elder, the keepsake."""
    name, kind, pronoun = _person(rng)
    he, him, his, himself = _PRONOUNS[pronoun]
    home = _draw(rng, lexicon.HOMES)
    return {
        "hero": name, "kind": kind, "he": he, "him": him, "his": his, "himself": himself,
        "trait": _draw(rng, lexicon.TRAITS), "home": home, "home_the": "the " + home.split(" ", 1)[1],
        "elder": _draw(rng, lexicon.GROWN_UPS),
        "kcolour": _draw(rng, lexicon.COLOURS), "keepsake": _draw(rng, lexicon.KEEPSAKES),
    }  # fmt: skip


def _set_scene(rng: random.Random, scene: Scene) -> None:
    """Fills in what changes with each episode; the friend of the last episode often comes along."""
    if "friend" not in scene or rng.random() < 0.5:
        name, kind, pronoun = _person(rng)
        while name == scene["hero"]:
            name, kind, pronoun = _person(rng)
        scene["friend"], scene["fkind"] = name, kind
        scene["fhe"], scene["fhim"], scene["fhis"], _ = _PRONOUNS[pronoun]
    for slot, options in _EPISODE_SLOTS.items():
        scene[slot] = _draw(rng, options)


def _fill(rng: random.Random, beat: str, scene: Scene) -> str:
    """Resolves the inline choices, then the slots, then `a` before a vowel."""
    beat = _CHOICE.sub(lambda match: _draw(rng, match[1].split("|")), beat)
    beat = _SLOT.sub(lambda match: _value(match[1], scene), beat)
    return _ARTICLE.sub(r"\1n ", beat)


def _value(slot: str, scene: Scene) -> str:
    """The slot's text; `{He}` is `{he}` with a capital."""
    value = scene[slot[0].lower() + slot[1:]]
    return value[0].upper() + value[1:] if slot[0].isupper() else value
