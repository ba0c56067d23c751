"""The benchmark's tables: ratios, goals with what misses them, and the exit code, from recorded measures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.plot import spread
from benchmarks.peers.table import Goal, Outcome, exit_code, goals, memory_limit, put, text

MATCH = {"tol": "1e-4", "verdict": "match", "cases": "27 of 27", "worst": "1.8e-05"}
MISMATCH = {**MATCH, "verdict": "mismatch", "cases": "26 of 27", "worst": "1.1e-04 (present.0.value of text)"}


def peer(*milliseconds: float, prefill: float = 40.0, **more: Any) -> dict[str, Any]:
    """A peer whose steps take so many milliseconds at 64, 512 and 1000 tokens; one in four is twice as slow."""
    decode = {
        str(context): [ms / 1000, ms / 1000, ms / 500, ms / 1000]
        for context, ms in zip((64, 512, 1000), milliseconds, strict=True)
    }
    cost = {"export_s": 6.0, "peak_mb": 500.0, "mb": 11.0, "load_s": 0.2, "off": 1.2e-5}
    return {"decode": decode, "prefill": [prefill / 1000], "beside": {}, **cost, **more}


def tiny(**changed: Any) -> Outcome:
    peers = {
        "kvparity_ort": peer(0.4, 0.45, 0.5, prefill=38),
        "kvparity_portable": peer(0.7, 0.8, 0.9),
        "kvparity_shared": peer(0.3, 0.31, 0.33, prefill=36),
        "torch_eager": peer(5.0, 5.1, 5.2, prefill=80),
        "mobius_genai": peer(0.4, 0.5, 0.6, prefill=48),
        "optimum_onnx": {"failed": "KeyError: 'gemma4_text'"},
        **changed.pop("peers", {}),
    }
    floor = {"decode": [0.00018] * 3, "prefill": [0.0164], "copy": [10e9, 9e9], "bytes": 9.0e6}
    judged = {name: [MATCH] for name in peers if name.startswith("kvparity")}
    outcome = Outcome((64, 512, 1000), "tiny", peers, floor, judged)
    return replace(outcome, **changed)


def real(**peers: Any) -> Outcome:
    measured = {
        "kvparity_ort": peer(60, 61, 62),
        "kvparity_portable": peer(66, 67, 68),
        "genai_builder": peer(50, 60, 70, prefill=50),
        "llamacpp": peer(20, 20, 20),
    }
    return replace(tiny(), goals="real", peers={**measured, **peers})


def found(outcome: Outcome, begins: str) -> Goal:
    return next(goal for goal in goals(outcome) if goal.name.startswith(begins))


def test_a_goal_says_what_was_reached_and_what_misses_it() -> None:
    at_64, at_1000 = found(tiny(), "decode at 64 tokens"), found(tiny(), "decode at 1000 tokens")
    assert at_64.reached == pytest.approx(0.75)
    assert at_64.note == "kvparity_shared : mobius_genai"
    assert at_64.missed == pytest.approx(0.08)
    assert at_1000.reached == pytest.approx(0.55)
    assert found(tiny(), "prefill").reached == pytest.approx(36 / 48)
    assert found(tiny(), "prefill").missed == 0
    assert found(tiny(), "decode at 1000: at most 1.15").reached == pytest.approx(1.1)
    assert found(tiny(), "export").missed == 0


def test_a_faster_peer_raises_the_ratio_and_a_slow_step_in_four_does_not() -> None:
    faster = tiny(peers={"mobius_onnx": peer(0.2, 0.5, 0.6)})
    assert found(faster, "decode at 64 tokens").reached == pytest.approx(1.5)
    assert "| 0.83 |" in text(faster)  # 1.5 - 0.67
    slower = tiny(peers={"mobius_genai": peer(0.5, 0.5, 0.6)})
    assert found(slower, "decode at 64 tokens").missed == 0


def test_the_real_model_is_held_against_memory_and_the_builders_own_build() -> None:
    limit = memory_limit(real().floor)
    assert limit == pytest.approx(0.9)  # 9 MB at 10 GB/s, the fastest copy
    assert found(real(), "decode at 64 tokens: at most 1.15 of the memory").reached == pytest.approx(60 / 0.9)
    assert found(real(), "decode at 64 tokens: at most onnx").reached == pytest.approx(1.2)
    assert found(real(), "decode at 1000 tokens: at most onnx").missed == 0
    assert found(real(), "portable at 64").reached == pytest.approx(1.1)


def test_weights_of_four_bits_are_no_peer_of_float32() -> None:
    assert "20.0 (20.0) 0.40x" in text(real())  # beside genai_builder's 50, not the best itself
    assert "50.0 (50.0) 1.00x" in text(real())
    assert "50.0 (50.0) 1.67x" in text(real(llamacpp_f32=peer(30, 30, 30)))


def test_a_peer_that_computes_something_else_is_not_the_best() -> None:
    fast = peer(0.1, 0.1, 0.1, prefill=5)
    assert found(tiny(peers={"mobius_onnx": fast}), "decode at 64 tokens").note == "kvparity_shared : mobius_onnx"
    wrong = tiny(peers={"mobius_onnx": {**fast, "off": 1.8}})
    assert found(wrong, "decode at 64 tokens").note == "kvparity_shared : mobius_genai"
    assert "| mobius_onnx | 6.0 | 500 | 11.0 | 0.20 | 1.8e+00, wrong | 0.100 (0.100) 0.25x |" in text(wrong)
    assert found(tiny(peers={"kvparity_shared": {**fast, "off": 1.8}}), "decode at 64").note.startswith("kvparity_ort")


def test_groups_are_compared_through_the_reference_in_each() -> None:
    alone = real(genai_builder=peer(50, 60, 70))
    beside = {"kvparity_ort": peer(60, 61, 62, beside={"64": 60.0})}
    busy = real(**beside, genai_builder=peer(50, 60, 70, beside={"64": 100.0}))  # its group was slowed down
    assert found(alone, "decode at 64 tokens: at most onnx").reached == pytest.approx(1.2)
    assert found(busy, "decode at 64 tokens: at most onnx").reached == pytest.approx(2.0)


def test_a_goal_without_its_peer_says_why() -> None:
    refused = real(genai_builder={"failed": "NotImplementedError: no such | model"})
    goal = found(refused, "decode at 512 tokens")
    assert (goal.reached, goal.missed) == (None, 0)
    assert "| not measured | – | genai_builder: NotImplementedError: no such / model |" in text(refused)
    assert exit_code(refused) == 0


def test_missed_goals_exit_0_and_a_bundle_that_differs_exits_1() -> None:
    assert exit_code(tiny()) == 0
    bundles = tiny().judged
    assert exit_code(tiny(judged={**bundles, "kvparity_shared": [MISMATCH]})) == 1
    assert exit_code(tiny(judged={**bundles, "kvparity_shared": [MISMATCH, {**MATCH, "tol": "auto"}]})) == 0
    assert exit_code(tiny(judged={**bundles, "kvparity_shared": [{**MATCH, "verdict": "error"}]})) == 1
    assert exit_code(tiny(judged={name: bundles[name] for name in list(bundles)[1:]})) == 1
    assert exit_code(tiny(peers={"kvparity_shared": {"failed": "ExportError: stage trace"}})) == 1


def test_the_page_holds_peers_floor_goals_and_verdicts() -> None:
    page = text(tiny(judged={**tiny().judged, "kvparity_ort": [MISMATCH, {**MATCH, "tol": "auto"}]}))
    for line in (
        "| kvparity_shared | 6.0 | 500 | 11.0 | 0.20 | 1.2e-05 | 0.300 (0.300) 0.75x | 0.310 (0.310) 0.62x |",
        "| optimum_onnx | fails: KeyError: 'gemma4_text' |",
        "- floor, one token: the matrix products alone take 0.180 ms, for 9.0 MB of weights; memory is copied at 10.0",
        "- kvparity_shared at 64 tokens: the products are 0.60 of it",
        "- kvparity_shared, 512 tokens: the products are 0.46 of it",
        "| decode at 64 tokens: at most 0.67 of the best peer's | 0.75 | 0.08 | kvparity_shared : mobius_genai |",
        "| kvparity_ort | --tol 1e-4: mismatch | 26 of 27 | 1.1e-04 (present.0.value of text) |",
        "| kvparity_ort | --tol auto: match | 27 of 27 | 1.8e-05 |",
    ):
        assert line in page


def test_a_page_gets_the_tables_of_its_model_and_keeps_the_rest() -> None:
    page = "a\n<!-- tiny -->\nold\n<!-- /tiny -->\nb\n<!-- real -->\nkept\n<!-- /real -->\nc\n"
    made = put(tiny(), page)
    assert "old" not in made
    assert made.startswith(f"a\n<!-- tiny -->\n\n{text(tiny())}\n\n<!-- /tiny -->\nb\n")
    assert made.endswith("<!-- real -->\nkept\n<!-- /real -->\nc\n")
    assert put(tiny(), made) == made
    assert "old" in put(real(), page)
    with pytest.raises(ValueError):
        put(tiny(), "no such place\n")


def test_every_table_has_as_many_cells_as_its_head() -> None:
    for part in text(tiny()).split("\n\n"):
        rows = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(json.dumps(asdict(tiny())))
    found = json.loads(path.read_text())
    assert text(replace(Outcome(**found), contexts=tuple(found["contexts"]))) == text(tiny())


def test_labels_stand_apart_and_around_the_ends_of_their_lines() -> None:
    assert spread([0.0, 5.0], 1.0) == [0.0, 5.0]
    assert spread([1.0, 1.0, 1.3, 9.0], 1.0) == pytest.approx([0.1, 1.1, 2.1, 9.0])
    heights = spread([0.0, 0.9, 1.0, 1.1, 2.1, 2.2], 1.0)
    assert min(after - before for before, after in pairwise(heights)) > 0.999


def test_four_bits_are_timed_against_llama_cpp_and_judged_by_perplexity() -> None:
    cost: dict[str, Any] = {"resident_mb": 400.0, "beside": {"64": 1.0, "512": 1.0, "prefill": 1.0}}
    peers = {
        "kvparity_ort": peer(60, 61, 62, perplexity=20.0, **cost),
        "kvparity_gguf_level4": peer(15, 30, 40, prefill=80, perplexity=20.1, off=0.8, **cost),
        "llamacpp": peer(30, 30, 40, prefill=100, perplexity=20.2, off=0.9, **cost),
        "kvparity_gguf": {"failed": "no"},
    }
    outcome = replace(tiny(), goals="4bit", peers=peers)
    decode = [goal for goal in goals(outcome) if goal.note == "kvparity_gguf_level4 : llamacpp"]
    assert [goal.reached for goal in decode] == pytest.approx([0.5, 1.0, 0.8])
    assert [goal.missed for goal in decode] == pytest.approx([0.0, 0.2, 0.0])
    lost = [goal for goal in goals(outcome) if goal.name.startswith("perplexity")]
    assert [goal.reached for goal in lost] == [None, None]
    assert "| 400 | 20.1 |" in text(outcome)
    assert "8.0e-01, rounded" in text(outcome)
