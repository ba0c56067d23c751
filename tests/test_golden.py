from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import past_name, present_name
from tests.synthetic import flip_exponent_bit


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's own script the way its reader does: by path, with nothing of ours importable."""
    command = [sys.executable, "-P", "-S", "-c", _RUN, str(folder / "verify.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


_RUN = """
import runpy, site, sys
site.main()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'exporter', 'runners', 'onnx', 'torch', 'transformers', 'pydantic'}:
            raise ImportError(f'verify.py must not need {name}')
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def golden(bundle: Bundle) -> Any:
    return json.loads((bundle.root / "cases" / "golden.json").read_text("utf-8"))


def test_verify_needs_numpy_and_onnxruntime_only_and_every_case_matches(tiny_bundle: Bundle) -> None:
    done = verify(tiny_bundle.root)
    assert (done.returncode, done.stderr) == (0, "")
    recorded = [case.name for case in tiny_bundle.manifest.cases]
    assert [line.split()[1] for line in done.stdout.splitlines()[:-1]] == recorded


def test_verify_refuses_changed_weights_and_finds_the_difference_where_it_may_not_refuse(tiny_copy: Path) -> None:
    flip_exponent_bit(tiny_copy / "model.safetensors", "model.norm.weight")
    refused = verify(tiny_copy, "prefill-2")
    assert refused.returncode == 2
    assert "model.safetensors is not the file" in refused.stderr
    found = verify(tiny_copy, "--no-hash", "prefill-2")
    assert found.returncode == 1
    assert found.stdout.startswith("MISMATCH prefill-2")


def test_verify_calls_nan_and_a_missing_file_by_name(tiny_copy: Path) -> None:
    (tiny_copy / "cases" / "prefill-2.npz").unlink()
    assert "the vectors of prefill-2 are missing" in verify(tiny_copy).stderr
    with np.load(tiny_copy / "vectors" / "prefill-1000.npz") as archive:
        data = {key: archive[key] for key in archive.files}
    data["logits"][0, 0] = np.nan
    np.savez(tiny_copy / "vectors" / "prefill-1000.npz", **data)
    done = verify(tiny_copy, "--no-hash", "prefill-1")
    assert done.returncode == 1
    assert "inf" in done.stdout


def test_verify_says_which_cases_there_are(tiny_bundle: Bundle) -> None:
    done = verify(tiny_bundle.root, "prefill-3")
    assert done.returncode == 2
    assert "cases are prefill-1, " in done.stderr


def test_golden_files_are_in_graph_order_with_names_and_hashes(tiny_bundle: Bundle) -> None:
    from onnx import TensorProto, numpy_helper

    document = golden(tiny_bundle)
    assert {case["name"] for case in document["cases"]} >= {"prefill-1", "handoff-128", "special-tokens"}
    for case in document["cases"]:
        vectors = tiny_bundle.vectors(case["name"])
        for step, call in zip(vectors.case.steps(), case["steps"], strict=True):
            graph = tiny_bundle.graph(step.graph)
            assert call["graph"] == graph.file.path
            for kind, ports in (("inputs", graph.spec.inputs), ("outputs", graph.spec.outputs)):
                assert [entry["name"] for entry in call[kind]] == [port.name for port in ports]
                for index, entry in enumerate(call[kind]):
                    assert entry["file"] == f"{kind[:-1]}_{index}.pb"
                    data = (tiny_bundle.root / call["folder"] / entry["file"]).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
                    tensor = numpy_helper.to_array(TensorProto.FromString(data))
                    assert (tensor.dtype.name, list(tensor.shape)) == (entry["dtype"], entry["shape"])
            assert len(list((tiny_bundle.root / call["folder"]).iterdir())) == len(call["inputs"]) + len(
                call["outputs"]
            )


def test_each_call_is_fed_what_the_call_before_gave(tiny_bundle: Bundle) -> None:
    document = golden(tiny_bundle)
    slots = tiny_bundle.model.cache_names()
    assert document["chain"] == {present_name(s.slot, part): past_name(s.slot, part) for s, part in slots}
    for case in document["cases"]:
        for before, after in zip(case["steps"], case["steps"][1:], strict=False):
            if "continues" in after:  # or what an earlier one gave, cut
                assert after["start"] <= case["steps"][after["continues"]]["stop"]
                continue
            given = {entry["name"]: entry["sha256"] for entry in after["inputs"]}
            for entry in before["outputs"]:
                if entry["name"] in document["chain"]:
                    inputs = tiny_bundle.root / after["folder"]
                    assert document["chain"][entry["name"]] in given
                    assert inputs.is_dir()
                    place = next(e for e in after["inputs"] if e["name"] == document["chain"][entry["name"]])
                    assert (place["dtype"], place["shape"]) == (entry["dtype"], entry["shape"])
                    assert _values(inputs / place["file"]) == _values(
                        tiny_bundle.root / before["folder"] / entry["file"]
                    )


def _values(path: Path) -> bytes:
    from onnx import TensorProto

    return TensorProto.FromString(path.read_bytes()).raw_data


def test_the_manifest_vouches_for_the_script_and_the_list(tiny_bundle: Bundle) -> None:
    files = {entry.path for entry in tiny_bundle.manifest.files}
    assert files >= {"verify.py", "cases/golden.json", "cases/README.md"}


def test_the_readme_explains_replay_in_ten_lines(tiny_bundle: Bundle) -> None:
    lines = (tiny_bundle.root / "cases" / "README.md").read_text("utf-8").splitlines()[2:]
    numbers = [line.split(". ")[0] for line in lines if not line.startswith(" ")]
    assert numbers == [str(number) for number in range(1, 11)]


def test_the_javascript_example_replays_the_golden_vectors(tiny_bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    from kvparity.runners.isolation.process import engines_folder

    example = Path(__file__).resolve().parents[1] / "examples" / "node" / "replay.js"
    modules = engines_folder() / "node" / "node_modules"
    if shutil.which("node") is None or not modules.exists():
        pytest.skip("node and onnxruntime-node are not installed; make engines")
    (tmp_path / "node_modules").symlink_to(modules)
    for name in ("replay.js", "golden.js", "package.json"):
        shutil.copy(example.with_name(name), tmp_path)
    done = subprocess.run(
        ["node", "replay.js", tiny_bundle.root, "prefill-2", "handoff-128"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("ok ") == 2


SLOW_FORMS = [pytest.param(name, marks=pytest.mark.slow) for name in ("static-batch", "bare-full", "last")]


@pytest.fixture(scope="module", params=["static", "bare", *SLOW_FORMS])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy Gemma 3 of window 8 in every form that verify.py plays beside the default one."""
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases
    from tests.families import FAMILIES, make_config, save_checkpoint

    options = {
        "static": ExportOptions(layout="static", max_len=40, chunk=4),
        "static-batch": ExportOptions(layout="static", max_len=40, chunk=7, batch=2, logits="last"),
        "bare": ExportOptions(profile="bare"),
        "bare-full": ExportOptions(profile="bare", sliding_cache="full"),
        "last": ExportOptions(logits="last"),
    }[request.param]
    folder = tmp_path_factory.mktemp("small")
    family = next(family for family in FAMILIES if family.name == "gemma3")
    source = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    return export(source, folder / "bundle", options, record=record_cases, limit=40, in_process=True)


def test_every_form_of_bundle_carries_a_verify_that_says_match_and_mismatch(small: Bundle, tmp_path: Path) -> None:
    import shutil

    done = verify(small.root)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(done.stdout.splitlines()) == len(small.manifest.cases) + 1
    copy = Path(shutil.copytree(small.root, tmp_path / "bundle"))
    flip_exponent_bit(copy / small.manifest.weights[0].path, "model.norm.weight")
    assert verify(copy).returncode == 2
    assert verify(copy, "--no-hash").returncode == 1


def test_a_shifted_cache_row_is_a_mismatch_in_every_form(small: Bundle, tmp_path: Path) -> None:
    """Twin of the test above, in a cache and not in the logits."""
    import shutil

    copy = Path(shutil.copytree(small.root, tmp_path / "bundle"))
    (entry,) = (case for case in small.manifest.cases if case.name == "prefill-9")
    path = copy / "vectors" / f"{entry.rows[0].sequence}.npz"
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files}
    data["cache.0.key"] = np.roll(data["cache.0.key"], 1, axis=1)
    np.savez(path, **data)
    done = verify(copy, "--no-hash", "prefill-9")
    assert done.returncode == 1
    assert "present.0.key" in done.stdout


def test_golden_calls_of_every_form_replay_and_hold_no_padding(small: Bundle) -> None:
    import onnxruntime
    from onnx import TensorProto, numpy_helper

    document = golden(small)
    static = small.options.layout == "static"
    assert bool(document["cases"]) == (small.options.batch in (None, 1))
    for case in document["cases"]:
        for call in case["steps"]:
            folder = small.root / call["folder"]
            inputs, outputs = (
                {
                    entry["name"]: numpy_helper.to_array(TensorProto.FromString((folder / entry["file"]).read_bytes()))
                    for entry in call[kind]
                }
                for kind in ("inputs", "outputs")
            )
            if static:
                assert (inputs["cache_position"] >= 0).all()
            session = onnxruntime.InferenceSession(str(small.root / call["graph"]))
            for name, actual in zip(outputs, session.run(list(outputs), inputs), strict=True):
                assert actual.shape == outputs[name].shape
                assert np.abs(actual - outputs[name]).max(initial=0) < 1e-4, (call["folder"], name)


def test_a_layout_that_the_script_cannot_play_is_refused_with_the_reason(tiny_copy: Path) -> None:
    manifest = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    for key, value, words in (("layout", "shared", "not shared"), ("dtype", "bfloat16", "no bfloat16")):
        edited = {**manifest, "options": {**manifest["options"], key: value}}
        (tiny_copy / "manifest.json").write_text(json.dumps(edited), "utf-8")
        done = verify(tiny_copy)
        assert done.returncode == 2
        assert words in done.stderr


@pytest.mark.engine
def test_a_fresh_environment_with_numpy_and_onnxruntime_only_verifies(tiny_copy: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    command = [str(python), "-m", "pip", "install", "-q", "numpy", "onnxruntime"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("numpy and onnxruntime can't be installed here")
    script = [str(python), str(tiny_copy / "verify.py")]
    assert subprocess.run(script, capture_output=True).returncode == 0
    weights = tiny_copy / "model.safetensors"
    flip_exponent_bit(weights, "model.norm.weight")
    assert subprocess.run(script, capture_output=True).returncode == 2
    assert subprocess.run([*script, "--no-hash"], capture_output=True).returncode == 1


def test_the_script_is_written_for_python_3_9(tiny_bundle: Bundle) -> None:
    import ast

    tree = ast.parse((tiny_bundle.root / "verify.py").read_text("utf-8"), feature_version=(3, 9))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)  # X | Y in types
    newer = {"file_digest", "pairwise", "batched", "StrEnum", "tomllib", "ExceptionGroup", "walk"}
    for node in ast.walk(tree):
        assert not {getattr(node, "attr", ""), getattr(node, "id", "")} & newer, ast.dump(node)
        assert not {k.arg for k in getattr(node, "keywords", [])} & {"strict", "slots", "kw_only"}, ast.dump(node)
