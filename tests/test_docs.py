"""The documents are true: the tree, the commands, the links, the command-line reference."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

import cli
from tests.folder_tree import BEGIN, END, ROOT, tracked, tree

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(Path(ROOT / name) for name in tracked() if name.endswith(".md"))


def commands(text: str) -> list[str]:
    """Every ``python cli.py …`` line of the shell blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python cli.py ")]


def test_the_tree_of_folders_is_the_tree() -> None:
    assert (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0] == tree(), (
        "run: python -m tests.folder_tree --write"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_is_one_the_command_line_has(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line)[2:]
        context = click.Context(cli.cli, **cli.cli.context_settings)
        command = cli.cli.get_command(context, words[0])
        assert command is not None, line
        command.make_context(words[0], words[1:], resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_shows_the_commands_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"^make ([a-z-]+)", README, flags=re.M)) <= targets


def test_no_page_or_source_names_a_machine() -> None:
    pattern = re.compile(r"/(?:home|root|work|Users)/[a-z]")
    for name in tracked():
        if (
            name.endswith((".py", ".md", ".toml", ".json", ".csv", ".cjs", ".mjs", ".html"))
            and name != "tests/test_docs.py"
        ):
            assert not pattern.search((ROOT / name).read_text(encoding="utf-8")), name


def _destinations() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## To change X, go to Y")[1]
    rows = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([^|]+) \|$", text.split("\n## ")[0], flags=re.M)
    return [(topic.strip(), path, name.strip()) for topic, path, name in rows]


def test_every_destination_of_the_architecture_page_exists() -> None:
    rows = _destinations()
    assert len(rows) >= 20
    for topic, path, name in rows:
        assert (ROOT / path).exists(), f"{topic}: {path}"
        if symbol := re.fullmatch(r"`(\w+)`", name):
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {symbol[1]}\b|^{symbol[1]}\b.*=", source, flags=re.M), f"{topic}: {name}"


def test_make_help_lists_every_target_and_no_target_runs_what_is_gone() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, flags=re.M)
    assert targets is not None
    command = ["make", "--no-print-directory", "help"]  # these tests may run inside `make test`
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[0] for line in shown.splitlines()) == sorted(targets[1].split())
    modules = re.findall(r"python -m ((?:tests|benchmarks)[\w.]*)", text)
    scripts = re.findall(r"python ([\w/]+\.py)", text)
    assert modules
    assert scripts
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
