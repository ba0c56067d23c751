"""The story grammar: the same seed gives the same stories, and the stories differ enough to learn from."""

from __future__ import annotations

import hashlib
import re
from itertools import islice

import pytest

from kvparity.exporter.tinygemma.corpus import stories, words
from kvparity.exporter.tinygemma.grammar import CREATURES, PLOTS, WORDS, parse_plots


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(islice(stories(7), 3000))


def test_the_shipped_checkpoint_s_stories_never_change() -> None:
    digest = hashlib.sha256("\0".join(islice(stories(0), 200)).encode()).hexdigest()
    assert digest == "385ac87c534d9fa4d27d75dab935034738b684bad91f3c734378840845912140"


def test_same_seed_gives_the_same_stories(sample: list[str]) -> None:
    assert list(islice(stories(7), 50)) == sample[:50]


def test_another_seed_gives_other_stories(sample: list[str]) -> None:
    assert not set(islice(stories(8), 50)) & set(sample[:50])


def test_no_story_is_told_twice(sample: list[str]) -> None:
    assert len(set(sample)) == len(sample)


def test_openings_differ(sample: list[str]) -> None:
    first_sentences = {story.split(". ")[0] for story in sample}
    assert len(first_sentences) > 0.8 * len(sample)


def test_a_good_part_of_the_stories_begins_with_once_upon(sample: list[str]) -> None:
    share = sum(story.startswith("Once upon a time, ") for story in sample) / len(sample)
    assert 0.3 < share < 0.8


@pytest.mark.parametrize(
    "name", ["girls", "boys", "things", "places", "foods", "animals", "keepsakes", "games", "weather", "season"]
)
def test_every_entry_of_a_list_is_used(sample: list[str], name: str) -> None:
    text = "\n".join(sample)
    assert [entry for entry in WORDS[name] if entry not in text] == []


@pytest.mark.parametrize("name", WORDS)
def test_lists_have_no_entry_twice(name: str) -> None:
    assert len(set(WORDS[name])) == len(WORDS[name])


def test_there_are_a_few_hundred_names_things_places_and_plots() -> None:
    names = {*WORDS["girls"], *WORDS["boys"], *(name for _, name in CREATURES)}
    assert len(names) + len(WORDS["things"]) + len(WORDS["places"]) + len(PLOTS) > 200


def test_every_plot_is_told_with_its_own_moral(sample: list[str]) -> None:
    text = "\n".join(sample)
    morals = [plot.moral.split("{")[0] for plot in PLOTS]
    assert len(set(morals)) == len(PLOTS)
    assert [moral for moral in morals if f"learned {moral}" not in text] == []


def test_nothing_of_the_notation_is_left(sample: list[str]) -> None:
    assert [story for story in sample if re.search(r"[\[\]{}|<>_]|  |^[=/-] ", story, re.MULTILINE)] == []


def test_articles_agree_with_the_next_word(sample: list[str]) -> None:
    assert [story for story in sample if re.search(r"\b[Aa] [aeiou]", story)] == []


def test_sentences_begin_with_a_capital(sample: list[str]) -> None:
    assert [story for story in sample if re.search(r"[.!?] [a-z]|\n[a-z]|^[a-z]", story)] == []


def test_a_line_without_a_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="starts with none of"):
        parse_plots("= moral\n- beat\n* what is this")


def test_long_stories_repeat_the_keepsake_of_the_opening_at_the_end(sample: list[str]) -> None:
    colours = "|".join(WORDS["colours"])
    keepsake = re.compile(rf"(?:{colours}) (?:{'|'.join(WORDS['keepsakes'])})\b")
    long = [story.split("\n") for story in sample if story.count("\n") >= 2]
    assert len(long) > 0.2 * len(sample)
    for first, *_, last in long:
        told = set(keepsake.findall(first))
        assert told & set(keepsake.findall(last))


def test_words_keeps_apostrophes_and_drops_case() -> None:
    assert words('"Don\'t go!" said Tom.') == ["don't", "go", "said", "tom"]
