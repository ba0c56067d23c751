"""The README's tree, made from the first docstring line of every file: ``python -m tests.readme_tree --write``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->\n"
FOLDERS = ("exporter", "runners", "benchmarks", "examples")


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
    """The tree as Markdown: one line per source file, folders indented."""
    lines = ["```", f"{'cli.py':<36} {summary('cli.py')}"]
    wanted = [n for n in tracked() if n.split("/")[0] in FOLDERS and n.endswith((".py", ".cjs", ".mjs", ".js"))]
    folder = ""
    for name in sorted(wanted, key=lambda n: (n.split("/")[:-1], n)):
        parent, _, base = name.rpartition("/")
        if parent != folder:
            folder = parent
            lines.append(f"{parent}/")
        if base != "__init__.py":
            lines.append(f"  {base:<34} {summary(name)}".rstrip())
        elif summary(name):
            lines[-1] = f"{parent + '/':<36} {summary(name)}"
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    """Print the tree, or put it into the README."""
    if "--write" not in sys.argv:
        sys.stdout.write(tree())
        return
    readme = ROOT / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(head + BEGIN + tree() + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
