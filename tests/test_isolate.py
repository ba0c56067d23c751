from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.runners.base import RunnerSpec, Session, parse_runner
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.decode.layouts.dynamic import Player
from kvparity.runners.engines.exact import open_model
from kvparity.runners.isolation.limits import limited
from kvparity.runners.isolation.process import (
    EngineCrashError,
    IsolatedSession,
    Launch,
    describe_isolated,
    engines_folder,
    interpreter,
    launch_of,
    open_runner,
)
from kvparity.runners.isolation.wire import HungError, encode, read_frame, write_all
from tests.synthetic import Decoder, make_bundle

FAKE = Path(__file__).with_name("fake_engine.py")
Opener = Callable[..., IsolatedSession]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("isolate") / "bundle")


@pytest.fixture
def opened(bundle: Bundle) -> Iterator[Opener]:
    """Opens fake engines, and closes whatever a test leaves open."""
    sessions: list[IsolatedSession] = []

    def make(mode: str, limit: float = 30.0) -> IsolatedSession:
        sessions.append(IsolatedSession(bundle, Launch("fake", [sys.executable, str(FAKE), mode], limit), {}))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def play(bundle: Bundle, session: Session, case: str) -> list[dict[str, np.ndarray]]:
    vectors = bundle.vectors(case)
    player = Player(bundle.model, bundle.options)
    return [dict(player.run(session, step, vectors.case.inputs(step))) for step in vectors.case.steps()]


def test_what_comes_back_is_bit_for_bit_what_the_engine_returned(bundle: Bundle, opened: Opener) -> None:
    here, there = play(bundle, Decoder(), "decode-only"), play(bundle, opened("good"), "decode-only")
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].dtype == other[name].dtype for name in one)
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_engine_says_who_it_is_and_how_long_it_took(bundle: Bundle, opened: Opener) -> None:
    session = opened("good")
    play(bundle, session, "prefill-1")
    assert (session.info.name, session.info.settings) == ("fake", {"mode": "good"})
    assert session.seconds == 0.25


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("aborts", "killed by SIGABRT: thread 'main' panicked"),
        ("exits", "ended with code 7"),
        ("babbles", "closed its pipe or broke the protocol"),
    ],
)
def test_a_dead_engine_is_an_error_that_says_how_it_died(bundle: Bundle, opened: Opener, mode: str, words: str) -> None:
    with pytest.raises(EngineCrashError, match=words):
        play(bundle, opened(mode), "decode-only")


def test_after_a_crash_the_next_call_gets_a_fresh_process(bundle: Bundle, opened: Opener) -> None:
    session = opened("aborts")
    with pytest.raises(EngineCrashError):
        play(bundle, session, "decode-only")
    assert play(bundle, session, "prefill-1")


def test_a_hang_ends_at_the_time_limit_and_twice_is_enough(bundle: Bundle, opened: Opener) -> None:
    session = opened("hangs", limit=2.0)
    for _ in range(2):
        with pytest.raises(EngineCrashError, match="did not answer within 2 s"):
            play(bundle, session, "decode-only")
    with pytest.raises(EngineCrashError, match="hung 2 times"):
        play(bundle, session, "prefill-1")


def test_an_exception_of_the_engine_keeps_its_type_and_first_line(bundle: Bundle, opened: Opener) -> None:
    with pytest.raises(TraceError, match="RuntimeError: kernel not found"):
        play(bundle, opened("raises"), "prefill-1")


def test_an_engine_that_crashes_does_not_take_the_others_down(bundle: Bundle, opened: Opener) -> None:
    specs = (RunnerSpec("ort", {"threads": "1"}), RunnerSpec("ort"))

    def opener(bundle: Bundle, spec: RunnerSpec) -> Session:
        return opened("aborts" if spec.options else "good")

    report = judge(bundle, JudgeOptions(specs, cases=("decode-only", "prefill-1")), opener=opener)
    verdicts = {(case.runner, case.case): case.verdict for case in report.cases}
    assert verdicts == {
        ("ort:threads=1", "decode-only"): "error",
        ("ort:threads=1", "prefill-1"): "match",
        ("ort", "decode-only"): "match",
        ("ort", "prefill-1"): "match",
    }


def test_a_closed_session_leaves_no_process(bundle: Bundle, opened: Opener) -> None:
    session = opened("good")
    assert session._process is not None
    pid = session._process._process.pid
    session.close()
    session.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_that_is_not_there_is_unavailable(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match="nowhere cannot be started"):
        IsolatedSession(bundle, Launch("fake", ["/nowhere"]), {})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros((1, 2, 0, 4), np.float32),
        np.float32(3.5).reshape(()),
        np.asarray([True, False]),
        np.arange(4).astype(ml_dtypes.bfloat16),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.asarray([np.nan, np.inf, -0.0], np.float16),
    ],
    ids=["int64", "no-rows", "scalar", "bool", "bfloat16", "fortran", "float16"],
)
def test_every_dtype_and_shape_crosses_the_pipe(array: np.ndarray) -> None:
    stream = BytesIO(b"".join(bytes(piece) for piece in encode({"op": "run"}, {"x": array})))
    header, tensors = read_frame(stream.read)
    assert header == {"op": "run"}
    assert (tensors["x"].dtype, tensors["x"].shape) == (array.dtype, array.shape)
    assert tensors["x"].tobytes() == np.ascontiguousarray(array).tobytes()


def test_a_reader_that_stops_reading_cannot_block_the_writer() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(HungError):
        write_all(writer, [bytes(4_000_000)], time.monotonic() + 0.3)
    os.close(reader)
    os.close(writer)


def test_an_environment_is_found_by_name_and_a_missing_one_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVPARITY_ENGINES", str(tmp_path))
    python = tmp_path / "tract" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert engines_folder() == tmp_path
    assert interpreter("tract", {}) == str(python)
    assert interpreter("ort", {"env": "tract"}) == str(python)
    assert interpreter("openvino", {}) == sys.executable
    monkeypatch.setenv("KVPARITY_PYTHON_OPENVINO", "/elsewhere/python")
    assert interpreter("openvino", {}) == "/elsewhere/python"
    assert interpreter("openvino", {"python": "/given"}) == "/given"
    with pytest.raises(EngineUnavailableError, match="environment 'ort-1' does not exist"):
        interpreter("ort", {"env": "ort-1"})


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_no_time_is_refused(limit: str) -> None:
    with pytest.raises(EngineUnavailableError, match="is not a number of seconds"):
        launch_of(parse_runner(f"ort:limit={limit}"))


def test_the_worker_describes_a_real_engine_and_refuses_what_it_cannot_open(bundle: Bundle) -> None:
    assert describe_isolated(RunnerSpec("onnx_reference")).name == "onnx_reference"
    with pytest.raises(EngineUnavailableError, match="setting 'colour' is unknown"):
        open_runner(bundle, parse_runner("onnx_reference:colour=red"))
    with pytest.raises(EngineUnavailableError, match="onnx_reference cannot load"):
        open_runner(bundle, parse_runner("onnx_reference"))


ENDLESS = """<ir_version: 8, opset_import: ["" : 18]>
g (double[1] x) => (double[1] y) {
  most = Constant<value: tensor = int64 {9223372036854775807}>()
  yes = Constant<value: tensor = bool {1}>()
  y = Loop(most, yes, x) <body = b (int64 i, bool go, double[1] s) => (bool more, double[1] t) {
    more = Identity(go)
    t = Add(s, s)
  }>
}"""
HUGE = """<ir_version: 8, opset_import: ["" : 18]>
g (double[1] x) => (double[n] y) {
  n = Constant<value: tensor = int64[1] {1000000000000}>()
  y = Expand(x, n)
}"""


@pytest.mark.parametrize(("text", "words"), [(ENDLESS, "did not answer within 3 s"), (HUGE, "alloc|memory|Expand")])
def test_a_graph_without_end_and_one_without_bounds_stop_at_the_limits(text: str, words: str) -> None:
    import onnx_ir as ir
    from onnx.parser import parse_model

    with limited(3.0, 4000):
        names, run = open_model(ir.from_proto(parse_model(text)), "ort", "graph")
        with pytest.raises(TraceError, match=words):
            run({"x": np.ones(1)})
    assert names == ["y"]


def test_a_right_graph_gives_the_same_within_limits() -> None:
    import onnx_ir as ir
    from onnx.parser import parse_model

    model = ir.from_proto(parse_model(HUGE.replace("1000000000000", "3")))
    here = open_model(model, "ort", "graph")[1]({"x": np.ones(1)})
    with limited(30.0):
        there = open_model(model, "onnx", "graph")[1]({"x": np.ones(1)})
    assert [array.tolist() for array in here] == [array.tolist() for array in there] == [[1.0, 1.0, 1.0]]
