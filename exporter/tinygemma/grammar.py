"""The story grammar's words, facts, sentences and plots, read from ``data/``.

Lists are ordered from common to rare, because stories draw the first entries more often: greedy decoding has clear
favourites, and sampling still reaches everything.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CREATURES", "ECHOES", "FACTS", "PLOTS", "SENTENCES", "WORDS", "Plot", "parse_plots"]

_DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Plot:
    """A sequence of beats, each a tuple of alternatives, and the moral, told as `{hero} learned <moral>`."""

    moral: str
    beats: tuple[tuple[str, ...], ...]


def parse_plots(text: str) -> tuple[Plot, ...]:
    """Plots in the notation that data/plots.txt begins with."""
    plots: list[tuple[str, list[list[str]]]] = []
    for line in text.splitlines():
        mark, sentence = line.split(" ", 1)
        if mark == "=":
            plots.append((sentence, []))
        elif mark == "-":
            plots[-1][1].append([sentence])
        elif mark == "/":
            plots[-1][1][-1].append(sentence)
        elif mark != "#":
            raise ValueError(f"plots.txt: line {line!r} starts with none of '=', '-', '/', '#'")
    return tuple(Plot(moral, tuple(map(tuple, beats))) for moral, beats in plots)


def _read(name: str) -> str:
    return (_DATA / name).read_text(encoding="utf-8")


_words: dict[str, Any] = tomllib.loads(_read("words.toml"))
_sentences: dict[str, Any] = tomllib.loads(_read("sentences.toml"))

CREATURES: tuple[tuple[str, str], ...] = tuple(_words.pop("creatures").items())
"""(kind, name) of animals that are heroes and friends."""
WORDS: dict[str, list[str]] = _words
"""Lists of words by name."""
FACTS: dict[str, dict[str, list[str]]] = tomllib.loads(_read("facts.toml"))
"""By the name of a list of `WORDS`: what is true of its entries, used by all stories alike."""
ECHOES: list[tuple[str, str]] = [(early, late) for early, late in _sentences.pop("echoes")]
"""Pairs of sentences: near the beginning of an episode, and at its end."""
SENTENCES: dict[str, list[str]] = _sentences
"""Sentences around the plots, by the place where they stand."""
PLOTS: tuple[Plot, ...] = parse_plots(_read("plots.txt"))
"""What happens in an episode, beat by beat."""
