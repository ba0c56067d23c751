"""Every refusal that a user can meet, read from the places in the code that make them: docs/refusals.md.

A refusal is a call of an error class of :mod:`kvparity.exporter.contract.errors`; its first argument is the message.
Whatever differs from case to case is shown as ``…``; words that come from a function, a variable or a caller of the
same module are followed to where they are written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from kvparity.exporter.contract import errors
from tests.folder_tree import ROOT

__all__ = ["is_listed", "refusals_page"]

_HEAD = """# Refusals

Made from the code by `python -m tests.reference_pages --write`. What cannot be done, or not be told, is said in one
line and ends with exit code 2; nothing is left half-written. `…` stands for names and numbers of the case, and most
messages begin with the file or folder concerned. Where a message does not say what to do, the line above the table
does. Wrong options and values of options are refused by the command line itself ([cli.md](cli.md)).
"""
# What the user was doing, what helps where a message does not say, and where the code of that is; the first that fits.
_GROUPS = (
    ("Making the tiny checkpoint", "See `kvparity train --help`.", "exporter/tinygemma/"),
    ("Checking a bundle with its `verify.py`", "Fetch or export the bundle again.", "exporter/golden/verify"),
    ("Making a package for another tool", "Export again as the message says.", "exporter/contract/package"),
    (
        "Choosing options of an export",
        "See `kvparity export --help`.",
        "exporter/(contract/(ports|options|spec)|quantize/plan|passes/opset)",
    ),
    (
        "Reading a checkpoint",
        "Fetch or save the checkpoint again; [formats.md](formats.md) says what is read.",
        "exporter/(checkpoint/|contract/(adapters|dequantize|checkpoint_files|text_part|model_files|chat_templates))",
    ),
    ("Writing a folder", "Choose another place.", "exporter/contract/files"),
    ("Opening a bundle", "Export the model again.", "exporter/contract/"),
    (
        "Making and checking graphs",
        "This model or combination is not supported; its config.json helps us.",
        "exporter/",
    ),
    ("Judging somebody else's package", "[judge.md](judge.md) says what is taken.", "runners/adopt/|kvparity/judging"),
    ("Starting an engine", "[engines.md](engines.md) says how.", "runners/(engines/|isolation/|base|spec)"),
    ("Recording references", "Export the model again.", "runners/reference/"),
    ("Writing text with `run`", "See `kvparity run --help`.", "runners/decode/"),
    ("Comparing and locating", "See `kvparity compare --help`.", "runners/(compare|locate|diff)/"),
    ("Looking inside, measuring and reporting", "See `--help` of the command.", ""),
)
_CLASSES = frozenset(errors.__all__) | {"EngineCrashError", "CouldNotTellError"}
_ANY = "…"
_DEPTH = 3


class _Module:
    """One file: its functions, and what is written where in it."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        self.constants = dict(_constants(self.tree))

    def messages(self) -> Iterator[tuple[ast.expr, ast.FunctionDef | None]]:
        """First arguments of error classes, each with the innermost function around it."""
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in _CLASSES
                and node.args
            ):
                around = [each for each in self.functions if each.lineno <= node.lineno <= (each.end_lineno or 0)]
                yield node.args[0], max(around, key=lambda each: each.lineno, default=None)


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names, values = (
                each.elts if isinstance(each, ast.Tuple) else [each] for each in (node.targets[0], node.value)
            )
            for name, value in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield name.id, value.value


def _constant(node: ast.expr, module: _Module) -> str:
    """The text of a constant of the package such as ``MANIFEST``."""
    known = [each.constants for each in (module, *_modules())]
    name = node.id if isinstance(node, ast.Name) and node.id.isupper() else ""
    return next((constants[name] for constants in known if name in constants), _ANY)


@lru_cache(maxsize=1)
def _modules() -> tuple[_Module, ...]:
    folders = [path for name in ("exporter", "runners") for path in sorted((ROOT / name).rglob("*.py"))]
    single = [ROOT / "cli.py", *sorted(path for path in (ROOT / "kvparity").glob("*.py") if not path.is_symlink())]
    return tuple(_Module(path) for path in [*folders, *single] if path.name != "errors.py")


def _texts(node: ast.expr, module: _Module, function: ast.FunctionDef | None, depth: int) -> list[str]:
    """What an expression can say, ``…`` where that is not written in the code."""
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else _ANY]
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            value = part.value if isinstance(part, ast.FormattedValue) else part
            found = [start + end for start in found for end in _texts(value, module, function, depth)]
        return found
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        ends = _texts(node.right, module, function, depth)
        return [start + end for start in _texts(node.left, module, function, depth) for end in ends]
    if isinstance(node, ast.IfExp):
        return _texts(node.body, module, function, depth) + _texts(node.orelse, module, function, depth)
    found = list(_followed(node, module, function, depth)) if depth else []
    written = [text for text in found if " " in text]
    return written if found and len(written) == len(found) else [*written, _constant(node, module)]


def _followed(node: ast.expr, module: _Module, function: ast.FunctionDef | None, depth: int) -> Iterator[str]:
    """What a name, or a call of a function of the package, stands for."""
    if isinstance(node, ast.Name) and function is not None:
        for each in ast.walk(function):
            if isinstance(each, ast.Assign) and [
                t for t in each.targets if isinstance(t, ast.Name) and t.id == node.id
            ]:
                yield from _texts(each.value, module, function, depth - 1)
        names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        if node.id in names:
            yield from _given(names.index(node.id), module, function.name, depth - 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for other in _modules():
            for called in other.functions:
                if called.name == node.func.id and (called.name[0] != "_" or other is module):
                    for each in ast.walk(called):
                        if isinstance(each, ast.Return) and each.value is not None:
                            yield from _texts(each.value, other, called, depth - 1)


def _given(index: int, module: _Module, name: str, depth: int) -> Iterator[str]:
    """What callers in the same file give as an argument."""
    for around in module.functions:
        for node in ast.walk(around):
            if isinstance(node, ast.Call) and len(node.args) > index:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name:
                    yield from _texts(node.args[index], module, around, depth)


def _words(text: str) -> int:
    return len(re.findall(r"[a-z]{2,}", text))


@lru_cache(maxsize=1)
def _refusals() -> dict[str, list[str]]:
    """Messages by what the user was doing."""
    found: dict[str, set[str]] = {title: set() for title, _, _ in _GROUPS}
    for module in _modules():
        title = next(title for title, _, place in _GROUPS if re.match(place, module.name))
        for message, function in module.messages():
            for text in _texts(message, module, function, _DEPTH):
                short = re.sub(r"(… ?)+…", _ANY, " ".join(text.split()))
                if _words(short) > 1:
                    found[title].add(short)
    return {title: sorted(texts, key=_without_place) for title, texts in found.items()}


def _without_place(text: str) -> str:
    """A message without the name of the file that it begins with."""
    rest = re.sub(r"^(…: )+", "", text)
    return rest if _words(rest.rpartition("; ")[0] or rest) else text


def is_listed(message: str) -> bool:
    """Whether a message that a user met is in the page, after the places and stages that it was passed on by."""
    patterns = (".*".join(map(re.escape, text.split(_ANY))) for texts in _refusals().values() for text in texts)
    return any(re.fullmatch(f"(.*(: |  ))?{pattern}", message, re.DOTALL) for pattern in patterns)


def refusals_page() -> str:
    """The page: a table for each thing that a user does."""
    parts = [_HEAD]
    for title, advice, _ in _GROUPS:
        rows = dict.fromkeys(_row(text) for text in _refusals()[title])
        parts.append(f"## {title}\n\n{advice}\n\n| what is said | what to do |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(text: str) -> str:
    said = _without_place(text).replace("|", "\\|").replace("<", "&lt;")
    what, _, todo = said.rpartition("; ")
    return f"| {what} | {todo} |" if what and what.count("(") == what.count(")") else f"| {said} | |"
