"""The tree in docs/architecture.md, made from the docstrings of folders: ``python -m tests.folder_tree --write``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->\n"
FOLDERS = ("exporter", "runners", "tests")


def tracked() -> list[str]:
    """Files that git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).is_file())


def summary(name: str) -> str:
    """First line of a Python file's docstring, or of another file's leading comment."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        doc = ast.get_docstring(ast.parse(text)) or ""
        return doc.strip().splitlines()[0].rstrip(".") if doc.strip() else ""
    for line in text.splitlines()[:3]:
        if line.startswith(("//", "#", "/*")):
            return line.strip("/#*! ").rstrip(".")
    return ""


def tree() -> str:
    """The tree as Markdown: one line per folder, with what its docstring says."""
    lines = ["```", f"{'cli.py':<32} {summary('cli.py')}"]
    for name in sorted(name for name in tracked() if name.split("/")[0] in FOLDERS and name.endswith("__init__.py")):
        lines.append(f"{name.removesuffix('__init__.py'):<32} {summary(name)}".rstrip())
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    """Print the tree, or put it into the page."""
    if "--write" not in sys.argv:
        sys.stdout.write(tree())
        return
    page = ROOT / "docs" / "architecture.md"
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(head + BEGIN + tree() + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
