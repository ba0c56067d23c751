"""The main job on the shipped checkpoint: export, run, compare; and what the bundle promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cli
import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec, load_engine
from kvparity.runners.decode.play import play
from tests.conftest import ROOT, TINY

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")


def test_every_case_matches_at_1e4_and_the_graphs_are_exact(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    assert cli.main(["compare", str(tiny_bundle.root), "--tol", "1e-4", "--exact", "--json", str(report)]) == 0
    data = json.loads(report.read_text())
    assert data["verdict"] == "match"
    assert {row["case"] for row in data["results"]} == {case.name for case in tiny_bundle.manifest.cases}
    assert max(case.total for case in tiny_bundle.manifest.cases) == 1000


def test_a_tolerance_below_rounding_fails_and_the_smallest_passing_one_is_printed(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(tiny_bundle.root), "--tol", "1e-9", "-c", "prefill-129"]) == 1
    assert "Smallest passing tolerance" in capsys.readouterr().out


def test_sliding_caches_never_exceed_window_minus_one_rows(tiny_bundle: Bundle) -> None:
    session = load_engine("ort").open_session(tiny_bundle, {})
    for name in ("decode-across", "chunk-129", "batch-ragged"):
        most = {"full": 0, "sliding": 0}
        case = tiny_bundle.vectors(name).case
        for result in play(tiny_bundle, session, case):
            for slot in tiny_bundle.model.slots:
                rows = result.outputs[f"present.{slot.slot}.key"].shape[2]
                most[slot.kind] = max(most[slot.kind], rows)
                assert rows == slot.kept_rows(result.step.stop)
        assert most == {"full": case.total, "sliding": 127}


def test_weights_are_stored_once_and_both_graphs_point_at_them(tiny_bundle: Bundle) -> None:
    checkpoint = (TINY / "model.safetensors").stat().st_size
    graphs = sum(graph.file.bytes for graph in tiny_bundle.manifest.graphs.values())
    weights = [entry for entry in tiny_bundle.manifest.weights]
    assert [entry.path for entry in weights] == ["model.safetensors"]
    assert graphs + weights[0].bytes <= 1.02 * checkpoint
    sizes = [graph.file.bytes for graph in tiny_bundle.manifest.graphs.values()] + [weights[0].bytes]
    assert sum(map(_blocks, sizes)) <= 1.02 * _blocks(checkpoint)


def _blocks(size: int) -> int:
    """Blocks of 4 KiB that `du` counts for a file."""
    return -(-size // 4096)


def test_the_bundle_is_a_transformers_folder_too(tiny_bundle: Bundle) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.root, local_files_only=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == tiny_bundle.model.parameters


def test_run_writes_what_transformers_generates_token_for_token(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from kvparity.runners.decode.generate import Sampling, generate

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    for prompt, count in (("Once upon", 200), ("The little fox was", 60)):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist()
        made = generate(tiny_bundle, prompt, count, runner=RunnerSpec("ort"), sampling=Sampling())
        assert list(made.prompt) == ids[0].tolist()
        assert list(made.tokens) == expected
    elsewhere = kvparity.run(tiny_bundle, "The little fox was", 20, f"ort:python={sys.executable}")
    assert list(elsewhere.tokens) == expected[:20]
    assert cli.main(["run", str(tiny_bundle.root), "-p", "Once upon", "-n", "30"]) == 0
    out = capsys.readouterr().out
    full = model.generate(tokenizer("Once upon", return_tensors="pt")["input_ids"], max_new_tokens=30, do_sample=False)
    assert out.strip() == tokenizer.decode(full[0], skip_special_tokens=True).strip()


def test_runners_need_no_torch(tiny_bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import cli; "
        f"a = cli.main(['compare', {str(tiny_bundle.root)!r}, '--exact', '-c', 'handoff-128']); "
        f"b = cli.main(['run', {str(tiny_bundle.root)!r}, '-n', '3']); "
        f"c = cli.main(['inspect', {str(tiny_bundle.root)!r}]); sys.exit(a + b + c)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_live_and_recorded_references_are_the_same_bits(tiny_bundle: Bundle) -> None:
    session = load_engine("torch_eager").open_session(tiny_bundle, {})
    vectors = tiny_bundle.vectors("prefill-1000")  # the whole of its sequence, which was recorded in one call
    for result in play(tiny_bundle, session, vectors.case):
        expected = vectors.arrays["logits"][:, result.step.start : result.step.stop]
        assert np.array_equal(result.outputs["logits"], expected)


def test_inspect_says_what_the_bundle_does_not_prove(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_bundle.root)]) == 0
    out = capsys.readouterr().out
    assert "does not prove" in out
    assert "KV sharing" in out
    assert cli.main(["inspect", str(tiny_bundle.root), "--json"]) == 0
    slots = json.loads(capsys.readouterr().out)["slots"]
    assert [slot["most_rows"] for slot in slots] == [127, 127, 1024, 127, 127, 1024]
