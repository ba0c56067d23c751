"""The process that traces: it forks for the two graphs, and ends whatever the model computes while it is traced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import save_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_whose_rotary_tables_need_several_threads_is_traced_to_the_end(tmp_path: Path, dtype: str) -> None:
    """Float16 graphs read the model once more after the fork, where a pool of threads started before it is dead.

    Heads of 512 make a product that torch computes in parallel, which smaller ones do not.
    """
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=256,
        global_head_dim=512,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
    )
    model = save_checkpoint(config, tmp_path / "hf")
    command = [sys.executable, "cli.py", "export", str(model), "-o", str(tmp_path / "b"), "--vectors", "none"]
    done = subprocess.run(
        [*command, "--dtype", dtype],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b" / "decode.onnx").is_file()


def test_every_private_name_of_torch_is_there() -> None:
    from kvparity.exporter.trace.record.private_names import missing_names

    assert missing_names() == ()


@pytest.mark.parametrize("hidden", ["", "torch._C.DisableTorchFunction2"])
def test_torch_export_traces_where_a_private_name_is_missing_and_the_stage_says_so(
    tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import Stage, export
    from tests.families import by_name, make_config

    if hidden:  # torch needs the real ones itself, so another is asked for, and none of them may be used
        monkeypatch.setattr("kvparity.exporter.trace.record.private_names.PRIVATE", ("torch.Tensor", hidden))
        for name in ("_record", "_translate_directly"):
            monkeypatch.setattr(f"kvparity.exporter.trace.capture.{name}", lambda *_: pytest.fail("was used"))
    model = save_checkpoint(make_config(by_name("llama")), tmp_path / "hf")
    stages: list[Stage] = []
    export(resolve(str(model)), tmp_path / "b", ExportOptions(), report=stages.append, in_process=True)
    note = next(stage.note for stage in stages if stage.name == "trace")
    if hidden:
        assert note.startswith("prefill and decode by torch.export, because torch 2.")
        assert note.endswith(f"has no {hidden}")
    else:
        assert note == "prefill and decode by recording"
