"""A reference that holds one module's weights at a time gives the same bits as the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.spec import PREFILL, ExportOptions
from kvparity.exporter.export import export
from kvparity.runners.engines.torch_eager import reference_session
from kvparity.runners.reference.record import reference_arrays
from tests.conftest import TINY
from tests.families import by_name, make_config, save_checkpoint, small_config

# Keys and values shared between layers with per-layer embeddings; keys that are values; experts; a plain model.
FAMILIES = ("gemma4 E2B-shaped", "gemma4 12B-shaped", "gpt_oss", "llama")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint without vectors."""
    target = tmp_path_factory.mktemp("streamed") / "bundle"
    return export(resolve(str(TINY)), target, ExportOptions(), in_process=True)


def _case(bundle: Bundle) -> Case:
    ids = np.random.default_rng(0).integers(3, bundle.model.vocab_size, (2, 24))
    return Case("walk", ids, (9, 1, 14), (0, 3), PREFILL, "")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_streaming_changes_no_bit(bundle: Bundle, dtype: str) -> None:
    _check(bundle, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_streaming_changes_no_bit_in_other_families(name: str, tmp_path: Path) -> None:
    save_checkpoint(make_config(by_name(name)), tmp_path / "hf")
    bundle = export(resolve(str(tmp_path / "hf")), tmp_path / "bundle", ExportOptions(), in_process=True)
    _check(bundle, "float32")


def _check(bundle: Bundle, dtype: str) -> None:
    case = _case(bundle)
    whole = reference_arrays(reference_session(bundle, dtype), bundle.model, case)
    session = reference_session(bundle, dtype, streamed=True)
    streamed = reference_arrays(session, bundle.model, case)
    assert all(np.array_equal(whole[key], streamed[key]) for key in whole)
    assert all(parameter.is_meta for parameter in session.model.parameters())


def _made(folder: Path, kind: str, dtype: Any = "float32", **settings: object) -> Bundle:
    save_checkpoint(small_config(kind, {"num_hidden_layers": 1, **settings}), folder / "hf", dtype=dtype)
    return export(resolve(str(folder / "hf")), folder / "bundle", ExportOptions(dtype=dtype), in_process=True)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("gemma3_text", "bfloat16")])
def test_streaming_reads_the_checkpoint_where_its_files_hold_the_weights_by_name(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    bundle = _made(tmp_path, kind, dtype)
    files, case = CheckpointFiles(tmp_path / "hf"), _case(bundle)
    (bundle.root / "model.safetensors").write_bytes(save({"spoilt": torch.zeros(1)}))
    for kind_of in (dtype, "float64"):
        session = reference_session(bundle, kind_of, files, streamed=True)
        assert session.unread == ""
        streamed = reference_arrays(session, bundle.model, case)
        whole = reference_arrays(reference_session(bundle, kind_of, files), bundle.model, case)
        assert all(np.array_equal(whole[key], streamed[key]) for key in whole)


def test_streaming_says_why_it_reads_the_bundle_instead(tmp_path: Path) -> None:
    bundle = _made(tmp_path, "qwen3_moe")  # transformers joins the experts' weights while it loads
    session = reference_session(bundle, "float32", CheckpointFiles(tmp_path / "hf"), streamed=True)
    assert "is not stored once and as it is" in session.unread
    whole = reference_arrays(reference_session(bundle, "float32"), bundle.model, _case(bundle))
    streamed = reference_arrays(session, bundle.model, _case(bundle))
    assert all(np.array_equal(whole[key], streamed[key]) for key in whole)


def test_a_weight_read_from_another_row_changes_the_result(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvparity.runners.engines import _streamed

    case, read = _case(bundle), _streamed._read
    whole = reference_arrays(reference_session(bundle, "float32"), bundle.model, case)
    monkeypatch.setattr(_streamed, "_read", lambda stored, name, rows: read(stored, name, rows).flip(0))
    session = reference_session(bundle, "float32", streamed=True)
    assert not np.array_equal(whole["logits"], reference_arrays(session, bundle.model, case)["logits"])


def test_widening_one_module_at_a_time_changes_no_bit(bundle: Bundle) -> None:
    """Large float64 references are made so; embeddings with a scale of their own are where it could go wrong."""
    from kvparity.runners.engines._streamed import widen_as_called
    from kvparity.runners.engines.torch_eager import TorchSession, _load

    case, wide = _case(bundle), reference_session(bundle, "float64")
    model = _load(bundle, "float32")
    widen_as_called(model)
    found = reference_arrays(TorchSession(model, bundle.model, dtype=torch.float64), bundle.model, case)
    wanted = reference_arrays(wide, bundle.model, case)
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
