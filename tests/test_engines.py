from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.exporter.contract.spec import DECODE, ExportOptions, GraphSpec, Port
from kvparity.runners.base import RunnerInfo, RunnerSpec, engine_names, load_engine, parse_runner
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.compare.known_failures import KnownFailure, load_known_failures, unexpected
from kvparity.runners.engines import _session, _static
from kvparity.runners.engines._chromium import chromium
from kvparity.runners.isolation.process import describe_isolated, engines_folder, open_runner
from tests.synthetic import make_bundle

ROOT = Path(__file__).resolve().parents[1]
KNOWN = Path(__file__).with_name("known_failures")
OURS = {"exact", "ort", "torch_eager", "trace_file"}
OTHERS = tuple(name for name in engine_names() if name not in OURS)
FIXED_SHAPES = ("emx", "litert", "tinygrad", "tvm")
BARE_ONLY = ("onnx2torch",)


@pytest.mark.parametrize("name", OTHERS)
def test_an_engine_is_a_module_with_an_install_line_that_loads_without_its_engine(name: str) -> None:
    module = importlib.import_module(f"kvparity.runners.engines.{name}")
    assert module.__doc__
    assert module.INSTALL.startswith(("pip install", "make engines"))
    assert module.TAKES.startswith(("the ", "every "))
    assert callable(module.describe)
    assert callable(module.open_session)


@pytest.mark.parametrize("name", OTHERS)
def test_an_engine_s_install_line_names_what_is_declared_and_the_matrix_has_a_row_of_it(name: str) -> None:
    from benchmarks.engines_matrix import ROWS, environments

    line = load_engine(name).INSTALL
    if line.startswith("pip install 'kvparity["):
        assert f"[{name}]" in line, f"pyproject.toml: the extra of an engine has its name; found {line}"
        assert name in environments(), f"pyproject.toml: no extra {name}"
    else:
        assert line in ("pip install onnx", "make engines ONLY=node")
    assert name in {runner.split(":")[0] for runner, _ in ROWS}, "benchmarks/engines_matrix.py: no row"


def test_importing_every_engine_module_imports_no_engine() -> None:
    code = (
        "import sys, importlib, pkgutil, kvparity.runners.engines as package\n"
        "[importlib.import_module(f'kvparity.runners.engines.{m.name}') for m in pkgutil.iter_modules(package.__path__)"
        " if m.name[0] != '_' and m.name != 'torch_eager']\n"
        "engines = {'onnx', 'onnxruntime', 'openvino', 'tract', 'cv2', 'iree', 'MNN', 'tvm', 'tinygrad', 'torch'}\n"
        "print(sorted(engines & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", OTHERS)
def test_an_absent_engine_is_unavailable_with_its_install_line(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVPARITY_ENGINES", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", _nothing_installed)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match="is not installed") as caught:
        load_engine(name).describe()
    assert load_engine(name).INSTALL in str(caught.value)


def _nothing_installed(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


@pytest.mark.parametrize("name", engine_names())
def test_a_setting_that_an_engine_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    """Before anything else, so that a setting is refused where the engine is absent as well."""
    with pytest.raises(EngineUnavailableError, match="setting 'colour' is unknown here; known are "):
        load_engine(name).open_session(make_bundle(tmp_path / "bundle", cases=()), {"colour": "red"})


@pytest.mark.parametrize("name", FIXED_SHAPES)
def test_an_engine_with_fixed_shapes_refuses_growing_caches_and_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"kvparity.runners.engines.{name}")
    monkeypatch.setattr(module, "describe", lambda: RunnerInfo(name, "1"))
    with pytest.raises(EngineUnavailableError, match="export with --layout static"):
        module.open_session(make_bundle(tmp_path / "bundle", cases=()), {})


@pytest.mark.parametrize("name", BARE_ONLY)
def test_an_engine_of_few_operators_refuses_other_profiles_and_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"kvparity.runners.engines.{name}")
    monkeypatch.setattr(module, "describe", lambda: RunnerInfo(name, "1"))
    with pytest.raises(EngineUnavailableError, match="export with --profile bare"):
        module.open_session(make_bundle(tmp_path / "bundle", cases=()), {})


def test_too_many_shapes_are_refused_and_not_passed(tmp_path: Path) -> None:
    import numpy as np

    spec = GraphSpec(DECODE, (Port("x", "float32", ("rows",)),), ())
    entry = make_bundle(tmp_path / "bundle", cases=()).graph(DECODE)
    entry = type(entry)(entry.file, spec, {}, 8)
    compiled: list[object] = []

    def compile_shapes(shapes: object) -> _session.Run:
        compiled.append(shapes)
        return lambda inputs: {}

    run = _static.PerShape("fixed", entry, compile_shapes, _static.shapes_limit({"shapes": "2"}, 9))
    for rows in (1, 2, 1):
        run({"x": np.zeros(rows, np.float32)})
    assert compiled == [{"x": (1,)}, {"x": (2,)}]
    with pytest.raises(TraceError, match="refused: fixed has fixed shapes"):
        run({"x": np.zeros(3, np.float32)})


def test_the_wrong_number_of_outputs_is_an_error(tmp_path: Path) -> None:
    entry = make_bundle(tmp_path / "bundle", cases=()).graph(DECODE)
    with pytest.raises(TraceError, match="returned 1 outputs, the graph has 0"):
        _session.by_name(entry, [1])  # type: ignore[list-item]


def test_a_session_of_another_layout_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", cases=(), options=ExportOptions(layout="shared"))
    with pytest.raises(EngineUnavailableError, match="takes the dynamic or static layout only"):
        _session.refuse_layouts("x", bundle, "dynamic", "static")


def test_known_failures_are_strict_files_about_engines_that_exist() -> None:
    for failure in load_known_failures(KNOWN):
        assert failure.runner.partition(":")[0] in engine_names()
        document, _, section = failure.evidence.partition("#")
        if document.startswith("docs/"):
            text = (ROOT / document).read_text("utf-8").lower()
            assert f"## {section}" in text, f"{failure.evidence} is not a section"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("failure = [", "not TOML"),
        ("a = 1", "expected \\[\\[failure\\]\\] entries"),
        ('[[failure]]\nrunner = "x"', "cases, evidence, reason, verdict unknown or missing"),
        ('[[failure]]\nrunner="x"\ncases="*"\nverdict="pass"\nreason="r"\nevidence="e"', "verdict 'pass'"),
        ('[[failure]]\nrunner="y"\ncases="*"\nverdict="error"\nreason="r"\nevidence="e"', "is about y, expected x"),
        ('[[failure]]\nrunner="x"\ncases="*"\nverdict="error"\nreason="r"\nevidence="e"\nnote="n"', "note unknown"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=words):
        load_known_failures(tmp_path)


def test_a_known_failure_that_is_gone_is_as_unexpected_as_a_new_one() -> None:
    fault = KnownFailure("ort:level=none", "chunk-*", "mismatch", "off by one", "docs", when={"precision": "low"})
    low, high = {"precision": "low"}, {"precision": "high"}
    asked, portable = "ort:threads=1,level=none", ExportOptions()

    def found(runner: str, options: ExportOptions, settings: dict[str, str], **verdicts: str) -> str:
        renamed = {case.replace("_", "-"): verdict for case, verdict in verdicts.items()}
        return "".join(unexpected((fault,), runner, options, settings, renamed))

    assert found(asked, portable, low, chunk_1="mismatch", text="match") == ""
    assert "remove the entry" in found(asked, portable, low, chunk_1="match")
    assert "no known failure" in found(asked, portable, low, text="error")
    assert "no known failure" in found(asked, portable, high, chunk_1="mismatch")
    assert found(asked, ExportOptions(layout="static"), low, chunk_1="match") == ""
    assert found("ort:threads=1", portable, low, chunk_1="match") == ""


def test_a_fault_of_one_profile_is_not_expected_in_another() -> None:
    fault = KnownFailure("ort", "*", "mismatch", "inexact Cos", "docs", profile="portable")
    assert unexpected((fault,), "ort", ExportOptions(), {}, {"text": "mismatch"}) == []
    assert unexpected((fault,), "ort", ExportOptions(profile="bare"), {}, {"text": "match"}) == []
    assert unexpected((fault,), "ort", ExportOptions(profile="bare"), {}, {"text": "mismatch"}) != []


def test_onnx_reference_runs_the_tiny_bundle_in_its_own_process(tiny_bundle: Bundle) -> None:
    spec = RunnerSpec("onnx_reference")
    report = judge(tiny_bundle, JudgeOptions((spec,), cases=("prefill-2", "chunk-empty"), tol=1e-4))
    assert {case.verdict for case in report.cases} == {"match"}


NOT_DYNAMIC = (*FIXED_SHAPES, *BARE_ONLY, "genai")
WEBGPU = "onnxruntime_web:provider=webgpu"
WORSE = ("openvino:precision=default", "onnxruntime_ggml:weights=default", WEBGPU)
DYNAMIC = (*WORSE, *(name for name in OTHERS if name not in NOT_DYNAMIC))


@pytest.fixture(scope="session")
def static_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with fixed shapes."""
    options = ExportOptions(layout="static", max_len=512, chunk=64)
    return _export(tmp_path_factory.mktemp("static") / "bundle", options)


@pytest.fixture(scope="session")
def bare_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint in the profile of the fewest operators."""
    return _export(tmp_path_factory.mktemp("bare") / "bundle", ExportOptions(profile="bare"))


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with sliding caches at full length."""
    return _export(tmp_path_factory.mktemp("full") / "bundle", ExportOptions(sliding_cache="full"))


def _export(target: Path, options: ExportOptions) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    source = resolve(str(ROOT / "artifacts" / "tinygemma4text3m" / "hf"))
    return export(source, target, options, record=record_cases, limit=300)


@pytest.mark.engine
@pytest.mark.parametrize("runner", DYNAMIC)
def test_an_engine_is_right_but_for_its_known_failures(tiny_bundle: Bundle, runner: str) -> None:
    _judge_known(tiny_bundle, runner)


@pytest.mark.engine
@pytest.mark.parametrize("runner", ["emx", "litert", "tvm"])
def test_an_engine_with_fixed_shapes_is_right_on_the_static_layout(static_bundle: Bundle, runner: str) -> None:
    _judge_known(static_bundle, runner)


@pytest.mark.engine
@pytest.mark.parametrize("runner", [*BARE_ONLY, "jaxonnxruntime", "onnxruntime_ggml", WEBGPU])
def test_an_engine_of_few_operators_is_right_on_the_bare_profile(bare_bundle: Bundle, runner: str) -> None:
    _judge_known(bare_bundle, runner)


@pytest.mark.engine
def test_genai_is_right_on_full_caches_but_for_its_known_failures(full_bundle: Bundle) -> None:
    _judge_known(full_bundle, "genai")


def _judge_known(bundle: Bundle, runner: str) -> None:
    spec = parse_runner(runner)
    _skip_unless_installed(spec)
    cases = ("prefill-2", "handoff-*", "chunk-cross", "batch-chunks")
    report = judge(bundle, JudgeOptions((spec,), cases=cases, tol=1e-4))
    record = report.runners[0]
    assert record.available, record.message
    verdicts = {case.case: case.verdict for case in report.cases}
    known = load_known_failures(KNOWN)
    assert unexpected(known, runner, bundle.options, record.settings, verdicts) == []


def _skip_unless_installed(spec: RunnerSpec) -> None:
    engine = load_engine(spec.name)
    try:
        if "provider" in spec.options:
            chromium()
        engine.describe() if getattr(engine, "OWN_PROCESS", False) else describe_isolated(spec)
    except EngineUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.engine
@pytest.mark.parametrize("version", ["1.20.1", "1.22.1", "1.24.4", "1.28.0"])
def test_older_onnx_runtimes_compute_the_same(tiny_bundle: Bundle, version: str) -> None:
    if not (engines_folder() / f"ort-{version}").exists():
        pytest.skip(f"no environment ort-{version}; make engines")
    spec = RunnerSpec("ort", {"env": f"ort-{version}"})
    session = open_runner(tiny_bundle, spec)
    assert session.info.version == version
    session.close()
    report = judge(tiny_bundle, JudgeOptions((spec,), cases=("handoff-128", "batch-chunks", "chunk-7"), tol=1e-4))
    assert {case.verdict for case in report.cases} == {"match"}
