"""TinyStories-style text from a seeded grammar: the same seed gives the same stories on every machine.

A story is an opening, one to six episodes (each a plot with its own place, things and companions) and a closing. What
the opening tells (name, home, a coloured keepsake) comes back at the end of long stories, hundreds of tokens later,
beyond the sliding window of 128. The shipped model has learnt to repeat names, not these: see its card.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from kvparity.exporter.tinygemma.grammar import ECHOES, PLOTS, SENTENCES, Plot
from kvparity.exporter.tinygemma.scene import Scene, draw, new_cast, set_episode

__all__ = ["stories", "story", "words"]

_EPISODE_WEIGHTS = (56, 20, 11, 7, 4, 2)
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


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
    scene = new_cast(rng)
    episodes = rng.choices(range(1, len(_EPISODE_WEIGHTS) + 1), _EPISODE_WEIGHTS)[0]
    paragraphs = []
    for number, plot in enumerate(rng.sample(PLOTS, episodes)):
        set_episode(rng, scene)
        lead = _opening(rng, episodes) if number == 0 else [draw(rng, SENTENCES["links"])]
        beats = [*lead, *_episode(rng, plot)]
        if number == episodes - 1:
            beats += _ending(rng, episodes, plot.moral)
        paragraphs.append(" ".join(_fill(rng, beat, scene) for beat in beats))
    return "\n".join(paragraphs)


def _opening(rng: random.Random, episodes: int) -> list[str]:
    """Who the hero is, in long stories always with the keepsake, and where the first episode plays."""
    beats = [draw(rng, SENTENCES["openings"])]
    if rng.random() < 0.5:
        beats.append(draw(rng, SENTENCES["portraits"]))
    if episodes > 1 or rng.random() < 0.4:
        beats.append(draw(rng, SENTENCES["keepsake"]))
    return [*beats, draw(rng, SENTENCES["settings"])]


def _episode(rng: random.Random, plot: Plot) -> list[str]:
    """The plot's beats with asides between them, sometimes inside an echo, rarely with a song."""
    beats = []
    for beat in plot.beats:
        beats.append(draw(rng, beat))
        aside = draw(rng, SENTENCES["asides"])
        if rng.random() < 0.3 and aside not in beats:
            beats.append(aside)
    if rng.random() < 0.1:
        beats.append(f"Then {{hero}} sang: {draw(rng, SENTENCES['songs'])}")
    if rng.random() < 0.45:
        early, late = draw(rng, ECHOES)
        beats = [early, *beats, late]
    return beats


def _ending(rng: random.Random, episodes: int, moral: str) -> list[str]:
    """Closing beats; long stories recall the facts of the opening."""
    if episodes > 1:
        return [draw(rng, SENTENCES["long_closings"])]
    lesson = [f"{{hero}} learned {moral}."] if rng.random() < 0.35 else []
    return [*lesson, draw(rng, SENTENCES["closings"])]


def _fill(rng: random.Random, beat: str, scene: Scene) -> str:
    """Resolves the inline choices, then the slots, then `a` before a vowel."""
    beat = _CHOICE.sub(lambda match: draw(rng, match[1].split("|")), beat)
    beat = _SLOT.sub(lambda match: _value(match[1], scene), beat)
    return _ARTICLE.sub(r"\1n ", beat)


def _value(slot: str, scene: Scene) -> str:
    """The slot's text; `{He}` is `{he}` with a capital."""
    value = scene[slot[0].lower() + slot[1:]]
    return value[0].upper() + value[1:] if slot[0].isupper() else value
