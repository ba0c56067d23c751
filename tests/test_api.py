"""The Python API: light to import, checked options, sessions of the caller's own, and pages that are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import cli
import kvparity
from kvparity.exporter.contract.bundle import Bundle
from tests.folder_tree import ROOT
from tests.reference_pages import PAGES
from tests.refusals import is_listed
from tests.synthetic import Decoder, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("api") / "bundle")


def engine(_bundle: Bundle) -> Decoder:
    return Decoder()


def drifting(_bundle: Bundle) -> Decoder:
    return Decoder(window_shift=1)


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_pages_are_current(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "run: python -m tests.reference_pages --write"


def test_a_refusal_is_looked_up_among_those_of_the_page() -> None:
    assert is_listed("error: stage read: x: its weights lack lm_head.weight (1 missing)")
    assert is_listed("COULD NOT TELL  ort: t.npz: not a readable .npz trace (No data left in file)")
    assert not is_listed("error: something that nobody says (at all); do nothing")


def test_importing_loads_no_library() -> None:
    code = (
        "import sys, kvparity; "
        "print(sorted({'torch', 'onnxruntime', 'numpy', 'pydantic', 'onnx', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in kvparity.__all__:
        assert getattr(kvparity, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = kvparity.nonesuch


def test_every_command_has_an_example_and_every_option_its_help() -> None:
    for name, command in cli.cli.commands.items():
        assert "Example:" in command.get_help(click.Context(command, **command.context_settings)), name
        for option in (item for item in command.params if isinstance(item, click.Option)):
            assert option.help, f"{name} {option.opts[0]}"


def test_sessions_of_the_caller_s_own_are_compared(bundle: Bundle) -> None:
    assert kvparity.compare(bundle, engine).verdict == "match"
    report = kvparity.compare(bundle.root, [engine, drifting], cases="prefill-*")
    verdicts = {record.runner: record.verdict for record in report.cases if record.case == "prefill-7"}
    assert verdicts == {"engine": "match", "drifting": "mismatch"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1e-4}, "option 'tolerance' is unknown; known are runners, cases"),
        ({"tol": "tight"}, "option tol: found 'tight'"),
        ({"exact": "perhaps"}, "option exact: found 'perhaps'"),
        ({"budget": -1.0}, "must be finite and at least 0"),
    ],
)
def test_a_wrong_option_is_one_line(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(kvparity.KvparityError, match=message) as caught:
        kvparity.compare(bundle, engine, **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "fast"}, "option profile: found 'fast', input should be 'bare'"),
        ({"profil": "ort"}, "option 'profil' is unknown; known are layout, profile"),
        ({"chunk": "many"}, "option chunk: found 'many'"),
    ],
)
def test_a_wrong_export_option_is_one_line_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(kvparity.KvparityError, match=message):
        kvparity.export("nowhere", "never", **options)


def test_the_example_of_the_page_runs(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").symlink_to(tiny_bundle.root, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.S)
    exec(example, {})
    assert (tmp_path / "report.html").stat().st_size > 1000
