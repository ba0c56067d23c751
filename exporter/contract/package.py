"""Packages: a bundle as a folder that another tool loads as it is, with nothing of ours and no hand edits.

A package layout is one file in ``exporter/packages`` with what :class:`PackageLayout` asks; it is found by its name.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, PackageError
from kvparity.exporter.contract.files import copy_file, new_folder
from kvparity.exporter.contract.packages._parts import Place, tokenizer_files, write_json
from kvparity.exporter.contract.spec import DECODE

__all__ = ["PackageLayout", "load_layout", "package_names", "write_package"]

_ASKED = ("TOOL", "refuse", "write", "readme")


class PackageLayout(Protocol):
    """A module in ``exporter/packages``.

    Attributes:
        TOOL: Name of the tool's own package.
    """

    TOOL: str

    def refuse(self, bundle: Bundle) -> None:
        """Refuse what the tool cannot take.

        Raises:
            PackageError: Says why, and what to export instead.
        """
        ...

    def write(self, bundle: Bundle, folder: Path, place: Place) -> None:
        """Write what the tool reads into an empty folder; ``place`` puts a file of the bundle there."""
        ...

    def readme(self, bundle: Bundle, folder: str) -> str:
        """How to load the folder of that name, what it was made from, and what the tool cannot do with it."""
        ...


def package_names() -> tuple[str, ...]:
    """Names of all package layouts."""
    package = importlib.import_module("kvparity.exporter.contract.packages")
    found = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"]
    return tuple(
        sorted(
            name for name in found if _is_layout(importlib.import_module(f"kvparity.exporter.contract.packages.{name}"))
        )
    )


def _is_layout(module: Any) -> bool:
    return all(hasattr(module, name) for name in _ASKED)


def load_layout(name: str) -> PackageLayout:
    """The package layout of a name.

    Raises:
        PackageError: There is none.
    """
    if name not in package_names():
        raise PackageError(f"--to {name}: unknown; known are {', '.join(package_names())}")
    return cast(PackageLayout, importlib.import_module(f"kvparity.exporter.contract.packages.{name}"))


def write_package(bundle: Bundle, name: str, target: Path) -> tuple[Path, ...]:
    """Turn a bundle into a folder that a tool loads; an earlier package of the tool is replaced once this one is whole.

    Args:
        bundle: An opened bundle.
        name: Which package layout.
        target: The folder.

    Returns:
        The files, relative to ``target``.

    Raises:
        PackageError: No such layout, or the tool cannot take the bundle.
        BundleError: ``target`` is something else, or cannot be written.
    """
    layout = load_layout(name)
    layout.refuse(bundle)
    if "tokenizer.json" not in tokenizer_files(bundle):
        raise PackageError(
            f"{bundle.root}: has no tokenizer.json, and {name} cannot read text without; "
            "put the tokenizer's files beside the checkpoint and export again"
        )
    if bundle.root.resolve().is_relative_to(target.resolve()):
        raise PackageError(f"{target}: the bundle lies in it, and would be replaced; choose another folder with -o")
    marker = f"kvparity-{name}.json"
    try:
        with new_folder(target, marker, f"a {name} package") as folder:
            try:
                layout.write(bundle, folder, copy_file)
            except BundleError as error:  # about a file of the bundle, which has been copied by then
                raise BundleError(str(error).replace(str(folder), str(bundle.root))) from error
            (folder / "README.md").write_text(layout.readme(bundle, target.absolute().name), encoding="utf-8")
            write_json(folder / marker, _origin(bundle, layout.TOOL))
            files = tuple(sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()))
    except OSError as error:
        raise PackageError(f"{target}: cannot be written ({error.strerror or error}); nothing was") from error
    return files


def _origin(bundle: Bundle, tool: str) -> dict[str, Any]:
    """What a package was made from, for programs; it also marks a folder as one that may be replaced."""
    manifest = bundle.manifest
    files = (manifest.graphs[DECODE].file, *manifest.weights)
    return {
        "tool": tool,
        "source": manifest.source,
        "revision": manifest.revision,
        "model": bundle.model.architecture,
        "options": json.loads(json.dumps(asdict(bundle.options))),
        "sha256": {entry.path: entry.sha256 for entry in files},
        "versions": manifest.versions,
    }
