"""``bench``: the table and the JSON hold the same medians, and engines run in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec
from kvparity.runners.bench.bench import Measure, Times
from kvparity.runners.bench.console import as_json, print_measures, table
from kvparity.runners.bench.options import BenchOptions
from kvparity.runners.decode import decoders
from kvparity.runners.isolation.process import IsolatedSession, Launch
from tests.synthetic import make_bundle

OPTIONS = BenchOptions(contexts=(1000, 64, 512))


def measure(name: str, *times: float) -> Measure:
    decode = {c: Times(t, t * 0.9, t * 1.1) for c, t in zip(OPTIONS.contexts, times, strict=True)}
    return Measure(name, 0.1, 20.0, Times(0.02, 0.02, 0.02), decode, {"full": 512, "sliding": 1024})


def test_the_table_and_the_json_hold_the_same_medians_and_ratios_are_to_the_fastest() -> None:
    measures = [measure("one", 2e-4, 1e-4, 1.5e-4), measure("two", 4e-4, 1e-4, 3e-4)]
    assert "0.200 (0.180–0.220) 1.00x" in table(measures, OPTIONS)
    assert "0.400 (0.360–0.440) 2.00x" in table(measures, OPTIONS)
    assert as_json(measures, OPTIONS)["results"][0]["decode_ms"]["1000"]["median"] == 0.2


def test_json_on_stdout_stands_alone_and_a_file_stands_beside_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = [measure("one", 2e-4, 1e-4, 1.5e-4)]
    print_measures(measures, OPTIONS, "-")
    assert json.loads(capsys.readouterr().out)["results"][0]["name"] == "one"
    print_measures(measures, OPTIONS, str(tmp_path / "speed.json"))
    assert "cache B/token" in capsys.readouterr().out
    assert json.loads((tmp_path / "speed.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize("options", [{"contexts": (0,)}, {"contexts": ()}, {"rounds": 0}, {"step": 3}, {"steps": "x"}])
def test_numbers_that_measure_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(kvparity.KvparityError, match=r"at least 1|unknown; known are|option steps"):
        kvparity.bench((), **options)


def test_an_engine_in_a_process_of_its_own_is_timed_there_and_its_memory_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def opener(bundle: Bundle, spec: RunnerSpec) -> IsolatedSession:
        asked.append(str(spec))
        fake = [sys.executable, str(Path(__file__).with_name("fake_engine.py")), "good"]
        return IsolatedSession(bundle, Launch("fake", fake, 30.0), {})

    monkeypatch.setattr(decoders, "open_runner", opener)
    bundle = make_bundle(tmp_path / "bundle")
    options: dict[str, Any] = {"contexts": (4,), "prefill": 4, "rounds": 1, "steps": 2}
    (found,) = kvparity.bench(bundle, "ort:python=elsewhere", **options)
    assert set(asked) == {"ort:python=elsewhere"}
    assert found.memory_mb > 5
    assert 0.25 <= found.decode[4].median < 0.3  # what the process said, whatever the pipes took
