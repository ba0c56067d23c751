"""The page of ``bench --html`` draws one line per subject at its measured places."""

from __future__ import annotations

import re

import pytest

from kvparity.runners.bench.bench import BenchOptions, Measure, Times, as_json, page, table
from kvparity.runners.report.svg import LinearAxis, LogAxis

OPTIONS = BenchOptions(contexts=(1000, 64, 512))


def measure(name: str, *times: float) -> Measure:
    decode = {c: Times(t, t * 0.9, t * 1.1) for c, t in zip(OPTIONS.contexts, times, strict=True)}
    return Measure(name, 0.1, 20.0, Times(0.02, 0.02, 0.02), decode, {"full": 512, "sliding": 1024})


def dots(text: str, style: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<circle cx="([\d.]+)" cy="([\d.]+)" r="4" class="dot {style}">', text)
    return [(float(x), float(y)) for x, y in found]


def test_a_slower_subject_lies_higher_and_contexts_rise_from_left_to_right() -> None:
    text = page([measure("fast", 2e-4, 1e-4, 1.5e-4), measure("a <slow> one", 4e-4, 2e-4, 3e-4)], OPTIONS)
    fast, slow = dots(text, "s0"), dots(text, "s1")
    assert len(fast) == len(slow) == 3
    assert [x for x, _ in fast] == sorted(x for x, _ in fast)
    assert [y for _, y in fast] == sorted((y for _, y in fast), reverse=True)
    assert all(high < low for (_, low), (_, high) in zip(fast, slow, strict=True))
    assert "a &lt;slow&gt; one" in text
    assert "512 + 1024" in text


def test_the_page_the_table_and_the_json_hold_the_same_medians() -> None:
    measures = [measure("one", 2e-4, 1e-4, 1.5e-4)]
    assert "0.200 (0.180–0.220) 1.00x" in table(measures, OPTIONS)
    assert "0.200 (0.180–0.220) 1.00x" in page(measures, OPTIONS)
    assert as_json(measures, OPTIONS)["results"][0]["decode_ms"]["1000"]["median"] == 0.2


def test_times_that_differ_by_decades_get_a_log_axis() -> None:
    near = page([measure("x", 1e-4, 1e-4, 1e-4)], OPTIONS)
    far = page([measure("x", 1e-4, 1e-4, 1e-4), measure("y", 1e-2, 1e-2, 1e-2)], OPTIONS)
    assert "≤1e" in far
    assert "≤1e" not in near


@pytest.mark.parametrize("largest", [0.019, 0.1, 0.34, 1.0, 7.2, 99.0])
def test_a_linear_axis_starts_at_zero_holds_the_largest_value_and_has_few_lines(largest: float) -> None:
    axis = LinearAxis.around([largest, largest / 3])
    assert axis.share(0.0) == 0
    assert 0.5 < axis.share(largest) <= 1
    assert 5 <= len(axis.ticks()) <= 12
    assert LogAxis(-3, 0).ticks()[0] == (1e-3, "≤1e-3")
