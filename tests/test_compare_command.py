"""The compare command: exit code 0, 1 or 2 and one clear line, whatever goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare import judge as judge_module
from kvparity.runners.isolation.process import open_runner
from tests.synthetic import Decoder, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("command") / "bundle")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of the decoder that stands for ``ort``."""
    settings: dict[str, Any] = {}
    real = open_runner

    def opener(opened: Bundle, spec: RunnerSpec) -> Any:
        return Decoder(**settings) if spec.name == "ort" else real(opened, spec)

    monkeypatch.setattr(judge_module, "open_runner", opener)
    return settings


def call(*words: object) -> int:
    return cli.main([str(word) for word in ("compare", *words)])


def test_match_is_0_mismatch_1_and_a_crash_2(bundle: Bundle, engine: dict[str, Any], capsys: Any) -> None:
    assert call(bundle.root) == 0
    engine["window_shift"] = 1
    assert call(bundle.root) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("Narrow it: python cli.py compare ")
    engine["crash_on_call"] = 1
    assert call(bundle.root, "--case", "prefill-1") == 2


def test_a_tight_tolerance_is_1_and_the_one_it_prints_is_0(bundle: Bundle, engine: dict[str, Any], capsys: Any) -> None:
    engine["scale"] = 1 + 1e-6
    assert call(bundle.root, "--tol", "1e-9") == 1
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("Smallest passing tolerance"))
    assert call(bundle.root, "--tol", line.split()[3]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "nothing*"], "no case matches 'nothing*'"),
        (["--tol", "nan"], "neither a number"),
        (["--tol", "inf"], "neither a number"),
        (["--tol", "-1"], "neither a number"),
        (["--tol", "tight"], "neither a number"),
        (["--exact-tol", "inf"], "finite"),
        (["--budget", "0"], "--budget"),
        (["--runner", "nonesuch"], "runner 'nonesuch': unknown"),
        (["--runner", "ort", "--runner", "ort"], "given twice"),
        (["--runner", "exact"], "--exact asks its question"),
        (["--self", "--case", "nothing"], "no identity matches"),
        (["--json", "/nonexistent/report.json"], "cannot be written"),
        (["--nonesuch"], "No such option"),
    ],
)
def test_a_wrong_request_is_2_and_one_clear_line(
    bundle: Bundle, engine: dict[str, Any], capsys: Any, words: list[str], message: str
) -> None:
    assert call(bundle.root, *words) == 2
    assert message in capsys.readouterr().err


def test_no_bundle_an_edited_one_and_a_missing_file_are_2(tmp_path: Path, engine: dict[str, Any], capsys: Any) -> None:
    assert call(tmp_path / "none") == 2
    assert call(tmp_path) == 2
    root = make_bundle(tmp_path / "bundle").root
    (root / "decode.onnx").write_bytes(b"edited")
    assert call(root) == 2
    assert "decode.onnx was modified" in capsys.readouterr().err
    assert call(root, "--allow-modified") == 0
    (root / "decode.onnx").unlink()
    assert call(root, "--allow-modified") == 2


def test_a_bundle_without_vectors_is_2_unless_it_is_asked_about_itself(tmp_path: Path, engine: dict[str, Any]) -> None:
    root = make_bundle(tmp_path / "bundle", recorded=False).root
    assert call(root) == 2
    assert call(root, "--self") == 0


def test_json_on_stdout_is_nothing_but_json(bundle: Bundle, engine: dict[str, Any], capsys: Any) -> None:
    assert call(bundle.root, "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "match"
    assert captured.err == "comparing ort\n"


def test_every_report_is_written_beside_the_text(bundle: Bundle, engine: dict[str, Any], tmp_path: Path) -> None:
    names = {"--json": "r.json", "--html": "r.html", "--junit": "r.xml", "--markdown": "r.md"}
    words = [word for flag, name in names.items() for word in (flag, tmp_path / name)]
    assert call(bundle.root, *words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names.values())
    assert all(path.stat().st_size > 500 for path in tmp_path.iterdir())


def test_a_saved_trace_is_judged_by_name(bundle: Bundle, engine: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    trace = tmp_path / "mine.npz"
    assert call(bundle.root, "--save-trace", trace) == 0
    assert call(bundle.root, "--trace", trace) == 0
    assert call(bundle.root, "--trace", trace, "--runner", "ort", "--json", tmp_path / "r.json") == 0
    names = [runner["name"] for runner in json.loads((tmp_path / "r.json").read_text())["runners"]]
    assert names == ["ort", "trace:mine.npz"]
    assert call(bundle.root, "--trace", tmp_path / "absent.npz") == 2


def test_judging_recorded_vectors_imports_no_torch(bundle: Bundle) -> None:
    import subprocess

    code = (
        "import sys, cli; from tests.synthetic import Decoder; import kvparity.runners.compare.judge as j; "
        "j.open_runner = lambda b, s: Decoder(); "
        f"code = cli.main(['compare', {str(bundle.root)!r}, '--tol', 'auto', '--self']); "
        "assert code == 0, code; "
        f"code = cli.main(['compare', {str(bundle.root)!r}]); assert code == 0, code; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    root = Path(cli.__file__).parent
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_all_means_every_engine_that_is_here_and_names_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kvparity.runners.compare.candidates import candidates
    from kvparity.runners.inspect import listing

    rows = (
        listing.RunnerRow("exact", True, "1", ""),
        listing.RunnerRow("mnn", False, "", "mnn is not installed; pip install 'kvparity[mnn]'"),
        listing.RunnerRow("ort", True, "1", ""),
        listing.RunnerRow("torch_eager", True, "1", ""),
        listing.RunnerRow("tract", True, "1", ""),
    )
    monkeypatch.setattr(listing, "list_runners", lambda: rows)
    said: list[str] = []
    assert [spec.name for spec in candidates("all", say=said.append)[0]] == ["ort", "tract"]
    assert said == ["unavailable  mnn: mnn is not installed; pip install 'kvparity[mnn]'"]


def test_runners_side_by_side_get_a_matrix_and_none_stops_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    made = {
        "ort": Decoder(),
        "ort:level=none": Decoder(crash_on_call=2),
        "ort:threads=1": Decoder(window_shift=1),
    }

    def opener(opened: Bundle, spec: RunnerSpec) -> Any:
        if str(spec) not in made:
            raise RuntimeError("no such kernel")
        return made[str(spec)]

    monkeypatch.setattr(judge_module, "open_runner", opener)
    words = [word for name in ["ort:threads=2", *made] for word in ("--runner", name)]
    assert call(bundle.root, *words, "--case", "decode-*", "--json", tmp_path / "r.json") == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    summary = {
        line[0]: line[-1] for line in lines if line and line[0] in words and ("of" in line or line[-1] == "unavailable")
    }
    assert summary == {
        "ort:threads=2": "unavailable",
        "ort": "match",
        "ort:level=none": "error",
        "ort:threads=1": "mismatch",
    }
    cases = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert all(case["decode_ms"] > 0 for case in cases if case["runner"] == "ort")


def test_one_runner_alone_is_not_timed_so_that_its_report_has_the_same_bytes(
    bundle: Bundle, engine: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("a.json", "b.json"):
        assert call(bundle.root, "--json", tmp_path / name) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
