"""docs/cli.md from ``--help``, docs/api.md from docstrings, docs/refusals.md from errors.

``python -m tests.reference_pages --write`` writes them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

import cli
import kvparity
from kvparity.runners.bench.options import BenchOptions
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.decode.sampling import Sampling
from tests.folder_tree import ROOT
from tests.refusals import refusals_page

API_HEAD = """# Python API

Made from docstrings by `python -m tests.reference_pages --write`. The command line ([cli.md](cli.md)) calls these
functions and prints what they return. `import kvparity` loads none of the libraries that they use. What goes wrong is a
`kvparity.KvparityError` with a message of one line.

```python
import kvparity

bundle = kvparity.open_bundle("tiny")  # or kvparity.export(None, "tiny"): the shipped checkpoint
report = kvparity.compare(bundle, "ort", cases="handoff-128", tol=1e-4)
assert report.verdict == "match", report
report.save("report.html")

made = kvparity.run(bundle, "Once upon", tokens=8)
print(made.text, made.ended)

facts = kvparity.inspect(bundle)
print(facts["model"]["architecture"], facts["graphs"]["decode"]["opset"])
```

An engine of your own is a class that takes a bundle and has `info`, `run` and `close` (`kvparity.Session`);
`kvparity.compare(bundle, MyEngine)` judges it, and so does [the pytest plugin](../examples/pytest-plugin/README.md).
"""
OPTIONS = (JudgeOptions, Sampling, BenchOptions)


def cli_page() -> str:
    """The command-line reference."""
    head = "# Command line\n\nMade from `--help` by `python -m tests.reference_pages --write`.\n"
    parts = [head, _help(cli.cli, "kvparity")]
    for name, command in sorted(cli.cli.commands.items()):
        parts.append(f"## {name}\n\n{_help(command, f'kvparity {name}')}")
        for below, inner in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
            parts.append(f"### {name} {below}\n\n{_help(inner, f'kvparity {name} {below}')}")
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    settings = {**cli.cli.context_settings, "terminal_width": 110, "max_content_width": 110}
    context = click.Context(command, info_name=name, **settings)
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "```\n" + "\n".join(lines) + "\n```\n"


def api_page() -> str:
    """The reference of the Python API."""
    return "\n".join([API_HEAD, *_entries()])


def _entries() -> Iterator[str]:
    functions = [name for name in kvparity.__all__ if inspect.isfunction(getattr(kvparity, name))]
    for name in functions:
        yield _entry(f"kvparity.{name}", getattr(kvparity, name))
    for name in (name for name in kvparity.__all__ if name not in functions):
        yield _entry(f"kvparity.{name}", getattr(kvparity, name))
    for options in OPTIONS:
        yield _entry(options.__name__, options)


def _entry(title: str, thing: object) -> str:
    text = re.sub(r"  # doctest: \+SKIP", "", inspect.getdoc(thing) or "")
    signature = f"{title}{_signature(thing)}" if inspect.isfunction(thing) else f"class {title}"
    return f"## {title}\n\n```\n{signature}\n\n{text}\n```\n"


def _signature(function: object) -> str:
    """One parameter a line; a default that is a function is shown as ``...``, because it has an address."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    lines: list[str] = []
    keywords = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            keywords = True
            lines.append("*")
        hidden = parameter.default is not parameter.empty and callable(parameter.default)
        words = f"{parameter.replace(default=parameter.empty)} = ..." if hidden else str(parameter)
        lines.append(re.sub(r"""^(\W*\w+): (['"])(.*?)\2""", r"\1: \3", words))
    return "(" + "".join(f"\n    {line}," for line in lines) + f"\n) -> {signature.return_annotation}"


PAGES = {"cli.md": cli_page, "api.md": api_page, "refusals.md": refusals_page}


def main() -> None:
    """Write the pages, or print them."""
    for name, page in PAGES.items():
        if "--write" in sys.argv:
            (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
        else:
            sys.stdout.write(page())


if __name__ == "__main__":
    main()
