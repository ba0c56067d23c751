"""Recordings from anywhere: every kind of file, every float type, and engines' own names for their values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.report.report import Report
from tests.conftest import TINY
from tests.folder_tree import ROOT
from tests.synthetic import Decoder, make_bundle

CASE = "handoff-6"
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("recordings") / "bundle")


@pytest.fixture(scope="module")
def arrays(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    path = tmp_path_factory.mktemp("saved") / "t.npz"
    kvparity.compare(bundle, lambda _bundle: Decoder(), cases=CASE, save_trace=path)
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "engine"}


def write_npz(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "t.npz", **arrays)
    return folder / "t.npz"


def write_safetensors(folder: Path, arrays: Arrays) -> Path:
    save_file(arrays, folder / "t.safetensors", metadata={"engine": "mine 2"})
    return folder / "t.safetensors"


def write_npy(folder: Path, arrays: Arrays) -> Path:
    for name, array in arrays.items():
        (folder / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "t" / f"{name}.npy", array)
    (folder / "t" / "trace.json").write_text('{"engine": "mine 2"}')
    return folder / "t"


def write_raw(folder: Path, arrays: Arrays) -> Path:
    (folder / "t").mkdir()
    tensors = {}
    for index, (name, array) in enumerate(arrays.items()):
        (folder / "t" / f"{index}.bin").write_bytes(array.tobytes())
        tensors[name] = {"file": f"{index}.bin", "dtype": array.dtype.name, "shape": array.shape}
    (folder / "t" / "trace.json").write_text(json.dumps({"engine": "mine 2", "tensors": tensors}))
    return folder / "t"


WRITERS = [write_npz, write_safetensors, write_npy, write_raw]


def judged(bundle: Bundle, path: Path, **options: Any) -> Report:
    return kvparity.compare(bundle, traces=[path], cases=CASE, **options)


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_is_judged_alike(bundle: Bundle, arrays: Arrays, tmp_path: Path, write: Any) -> None:
    report = judged(bundle, write(tmp_path, arrays))
    assert report.verdict == "match"
    assert report.cases[0].max_abs_diff == judged(bundle, write_npz(tmp_path, arrays)).cases[0].max_abs_diff
    assert report.runners[0].settings["engine"] == ("unknown" if write is write_npz else "mine 2")
    short = {name.removeprefix(f"{CASE}/"): array for name, array in arrays.items()}
    (tmp_path / "again").mkdir()
    assert judged(bundle, write(tmp_path / "again", short)).verdict == "match"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_are_judged_and_named(
    bundle: Bundle, arrays: Arrays, tmp_path: Path, write: Any, dtype: str
) -> None:
    report = judged(bundle, write(tmp_path, {name: array.astype(dtype) for name, array in arrays.items()}))
    assert report.verdict == "match", report
    assert f"(recorded in {dtype})" in report.text().splitlines()[0]
    assert report.questions[0].needs_budget <= 4  # type: ignore[operator]


def test_a_fault_larger_than_rounding_shows_in_float16(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    wrong = {name: array.astype("float16") for name, array in arrays.items()}
    key = f"{CASE}/step_0/logits"
    wrong[key] = wrong[key].copy()
    wrong[key][0, 2, 3] += np.abs(wrong[key]).max() / 256  # four units in the last place
    report = judged(bundle, write_npz(tmp_path, wrong))
    assert report.verdict == "mismatch"
    assert "recorded in float16" in report.text().splitlines()[0]
    assert report.first_divergence is not None
    assert report.first_divergence.position == 2


def test_integers_are_no_float_type(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    report = judged(bundle, write_npz(tmp_path, {name: array.astype("int32") for name, array in arrays.items()}))
    assert report.first_divergence is not None
    assert report.first_divergence.reason == "dtype"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"step_0/logits": {"file": "../t.npz", "dtype": "float32", "shape": [1]}}, "inside the folder"),
        ({"step_0/logits": {"file": "a.bin", "dtype": "float32"}}, "needs file"),
        ({"step_0/logits": {"file": "a.bin", "dtype": "object", "shape": [1]}}, "dtype 'object'"),
        ({"step_0/logits": {"file": "a.bin", "dtype": "float32", "shape": [3]}}, "has 8 bytes, expected 12"),
        ({"step_0/logits": {"file": "b.bin", "dtype": "float32", "shape": [2]}}, "a.bin has no entry"),
        ([], "has to be an object"),
    ],
)
def test_a_folder_that_is_damaged_is_said_in_one_line(bundle: Bundle, tmp_path: Path, tensors: Any, words: str) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.bin").write_bytes(b"\0" * 8)
    (tmp_path / "t" / "trace.json").write_text(json.dumps({"tensors": tensors}))
    line = judged(bundle, tmp_path / "t").text().splitlines()[0]
    assert line.startswith("COULD NOT TELL")
    assert words in line
    assert str(tmp_path) not in line


@pytest.mark.parametrize(("name", "content"), [("t.safetensors", b"\xff" * 20), ("t.safetensors", b""), ("t", None)])
def test_what_is_no_recording_is_said(bundle: Bundle, tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    line = judged(bundle, tmp_path / name).text().splitlines()[0]
    assert line.startswith(f"COULD NOT TELL  trace:{name}: {name}: ")


def test_names_need_a_recording_and_a_table(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(kvparity.KvparityError, match="give the recording with --trace"):
        kvparity.compare(bundle, lambda _bundle: Decoder(), names="mlx")
    assert "known are llama.cpp, mlx, hooks" in judged(bundle, write_npz(tmp_path, arrays), names="gguf").text()


def test_hooks_and_mlx_names_of_outputs_are_known(bundle: Bundle, arrays: Arrays, tmp_path: Path) -> None:
    named = {
        name.replace("/logits", "/model.lm_head").replace("present.", "cache."): array for name, array in arrays.items()
    }
    for table in ("mlx", "hooks"):
        assert judged(bundle, write_safetensors(tmp_path, named), names=table).verdict == "match"
    assert judged(bundle, write_safetensors(tmp_path, named)).verdict == "mismatch"


def dump(bundle: Bundle, case: str, fault: str = "") -> Arrays:
    """What examples/engine computes, as llama.cpp's eval callback would save it: its names, no batch axis."""
    sys.path.insert(0, str(ROOT / "examples" / "engine"))
    try:
        import engine
    finally:
        sys.path.pop(0)
    known = {
        "input_layernorm": "attn_norm",
        "self_attn.q_norm": "Qcur_normed",
        "self_attn.k_norm": "Kcur_normed",
        "self_attn.v_norm": "Vcur_normed",
        "self_attn.context": "kqv_out",
        "post_attention_layernorm": "attn_post_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_out",
        "post_feedforward_layernorm": "ffn_post_norm",
        "self_attn.q_proj": "Qcur",
        "self_attn.k_proj": "Kcur",
        "self_attn.v_proj": "Vcur",
        "self_attn.query": "Qcur.1",
        "self_attn.key": "Kcur.1",
        "self_attn.value": "Vcur.1",
        "": "l_out",
    }
    found: Arrays = {}
    for name, array in engine.record(bundle.root, case, fault, probes=True).items():
        _, step, *probe = name.split("/")
        if probe == ["logits"]:
            found[f"{case}/{step}/result_output"] = array[0]
        elif probe[-1] in ("embed_tokens", "norm"):
            found[f"{case}/{step}/{ {'embed_tokens': 'inp_scaled', 'norm': 'result_norm'}[probe[-1]] }"] = array[0]
        elif probe[0] == "probes" and probe[1].startswith("layers."):
            _, layer, *inner = probe[1].split(".")
            if (kind := ".".join(inner)) not in known:
                continue
            base, _, time = known[kind].partition(".")
            values = array[0]
            if time:  # this call's rows alone, (tokens, heads, head_dim)
                tokens = int(np.load(bundle.root / "cases" / f"{case}.npz")["chunks"][int(step.removeprefix("step_"))])
                values = np.ascontiguousarray(values[:, -tokens:].swapaxes(0, 1))
            found[f"{case}/{step}/{base}-{layer}" + (f".{time}" if time else "")] = values
    return found


@pytest.fixture(scope="module")
def llama(tiny_bundle: Bundle) -> Arrays:
    return dump(tiny_bundle, "handoff-129")


def test_llama_cpp_names_are_judged_whole(tiny_bundle: Bundle, llama: Arrays, tmp_path: Path) -> None:
    report = kvparity.compare(
        tiny_bundle, traces=[write_safetensors(tmp_path, llama)], cases="handoff-129", names="llama.cpp"
    )
    assert report.verdict == "match", report
    assert report.cases[0].steps > 1
    assert any(result.tensor == "present.5.value" for result in report.results)


@pytest.mark.parametrize(
    ("edited", "probe"),
    [
        ("step_0/Qcur-2.1", "layers.2.self_attn.query"),
        pytest.param("step_0/ffn_out-3", "layers.3.mlp.down_proj", marks=pytest.mark.slow),
        pytest.param("step_0/kqv_out-1", "layers.1.self_attn.context", marks=pytest.mark.slow),
    ],
)
def test_an_edited_tensor_of_a_llama_cpp_dump_is_located(
    tiny_bundle: Bundle, llama: Arrays, tmp_path: Path, edited: str, probe: str
) -> None:
    wrong = {**llama, f"handoff-129/{edited}": llama[f"handoff-129/{edited}"] * np.float32(1.01)}
    wrong["handoff-129/step_0/result_output"] = llama["handoff-129/step_0/result_output"] + np.float32(0.1)
    path = write_npy(tmp_path, wrong)
    report = kvparity.compare(tiny_bundle, traces=[path], cases="handoff-129", names="llama.cpp", locate=True)
    assert report.verdict == "mismatch"
    assert report.locations[0].fault == "engine", report.locations[0].sentence
    assert report.locations[0].probe == probe, report.locations[0].sentence


@pytest.mark.slow
def test_hooks_of_a_pytorch_model_are_judged(tiny_bundle: Bundle, tmp_path: Path) -> None:
    script, path = ROOT / "examples" / "recordings" / "hooks.py", tmp_path / "mine.safetensors"
    command = [sys.executable, str(script), str(TINY), str(tiny_bundle.root), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    report = kvparity.compare(tiny_bundle, traces=[path], names="hooks", cases="handoff-129")
    assert report.verdict == "match", report
    recorded = {name: array for name, array in load_file(path).items()}
    key = "handoff-129/step_0/model.layers.1.mlp.up_proj"
    recorded[key] = recorded[key] * np.float32(1.02)
    recorded["handoff-129/step_0/logits"] = recorded["handoff-129/step_0/logits"] + np.float32(0.1)
    save_file(recorded, path)
    report = kvparity.compare(tiny_bundle, traces=[path], names="hooks", cases="handoff-129", locate=True)
    assert report.locations[0].probe == "layers.1.mlp.up_proj", report.locations[0].sentence


def test_neighbouring_elements_of_llama_s_heads_are_put_in_order() -> None:
    from dataclasses import replace

    from kvparity.runners.engines._names import Named
    from tests.synthetic import MODEL

    model = replace(MODEL, model_type="llama")
    heads = np.arange(2 * model.heads * 4, dtype=np.float32).reshape(2, model.heads, 4)  # (tokens, heads, head_dim)
    turned = np.stack((heads[..., :2], heads[..., 2:]), -1).reshape(heads.shape)
    bundle = type("B", (), {"model": model})()
    found = Named("llama.cpp", bundle, lambda _step: {"Qcur-0": turned}).inside(
        0, {"layers.0.self_attn.query": (1, 2, 2, 4)}
    )
    assert np.array_equal(found["layers.0.self_attn.query"], heads.swapaxes(0, 1)[None])
