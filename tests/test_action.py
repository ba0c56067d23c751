"""The GitHub action, run step by step in a local shell; workflow, hook and Dockerfile agree with what is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.folder_tree import ROOT
from tests.synthetic import make_bundle

yaml = pytest.importorskip("yaml", reason="transformers brings it")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run one shell step of the action, its expressions filled in, with `kvparity` and `python` as they are here."""
    action = read("action.yml")
    given = {key: str(entry.get("default", "")) for key, entry in action["inputs"].items()} | inputs
    found = next(entry for entry in action["runs"]["steps"] if entry.get("name") == name)
    own = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], text) for key, text in found["env"].items()
    }
    tools = folder / "tools"
    if not tools.is_dir():
        tools.mkdir()
        (tools / "kvparity").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"\n')
        (tools / "python").write_text('#!/bin/sh\necho "python $@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
    around = {
        **os.environ,
        **own,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", found["run"]]
    return subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True)


def test_a_model_is_exported_only_where_the_bundle_is_missing(tmp_path: Path) -> None:
    done = step("Install", tmp_path, package="kvparity", model="m", bundle="there")
    assert done.stdout.strip() == "python -m pip install --quiet kvparity[export]"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "manifest.json").write_text("{}")
    done = step("Install", tmp_path, package="kvparity", model="m", bundle="there")
    assert done.stdout.strip() == "python -m pip install --quiet kvparity"
    assert step("Export", tmp_path, model="m", bundle="there").returncode == 0
    done = step("Export", tmp_path, model="no such model", bundle="missing", **{"export-options": "--profile bare"})
    assert done.returncode == 2
    assert "no such model" in done.stderr


def test_what_cannot_be_told_is_an_annotation_and_every_report_is_there(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a bundle")  # its graphs are empty, so no engine can open them
    words = {"bundle": "a bundle", "runners": "ort\nort:level=none\n", "options": "--case prefill-7 --tol 1e-4"}
    done = step("Compare", tmp_path, **words)
    assert done.returncode == 2, done.stderr
    assert re.search(r"^::error title=kvparity::COULD NOT TELL  ort, case ", done.stdout, flags=re.M)
    assert {path.suffix for path in (tmp_path / "kvparity-reports").iterdir()} == {
        ".json",
        ".html",
        ".xml",
        ".md",
        ".txt",
    }
    assert (tmp_path / "summary.md").read_text().startswith("### ")
    done = step("Compare", tmp_path, bundle="missing", reports="other")
    assert done.returncode == 2
    assert "::error title=kvparity::could not tell; see the log" in done.stdout


def test_the_examples_use_what_the_action_and_the_hook_have() -> None:
    action, workflow = read("action.yml"), read("examples/ci/kvparity.yml")
    used = next(entry for entry in workflow["jobs"]["parity"]["steps"] if "with" in entry)
    assert used["with"].keys() <= action["inputs"].keys()
    assert all("shell" in entry or "uses" in entry for entry in action["runs"]["steps"])
    hooks = {hook["id"] for hook in read(".pre-commit-hooks.yaml")}
    chosen = read("examples/ci/pre-commit-config.yaml")["repos"][0]["hooks"]
    assert {hook["id"] for hook in chosen} <= hooks


def test_expressions_reach_the_shell_through_the_environment_only() -> None:
    for entry in read("action.yml")["runs"]["steps"]:
        assert "${{" not in entry.get("run", ""), "an input would be run as code"


def test_the_image_is_built_in_two_stages_and_runs_as_a_user() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert any(line.startswith("USER ") for line in lines)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_steps_pass_shellcheck(tmp_path: Path) -> None:
    for index, entry in enumerate(read("action.yml")["runs"]["steps"]):
        if "run" in entry:
            path = tmp_path / f"{index}.sh"
            path.write_text(
                "#!/usr/bin/env bash\n" + "".join(f"export {key}=x\n" for key in entry["env"]) + entry["run"]
            )
            done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
