"""A package as it lies on disk: its kind, and which of its graphs plays a prompt and which a decode call."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from kvparity.exporter.contract.errors import BundleError, lines_of
from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind

__all__ = ["Package", "check_links", "find_package", "graph_roles", "read_json"]

_JSON_LIMIT = 16_000_000  # bytes; settings of a package are a few kilobytes
_ORDER = ("genai", "transformers_exporter", "transformersjs", "optimum", "plain")


@dataclass(frozen=True)
class Package:
    """A foreign package.

    Attributes:
        kind: Its kind, a file in ``runners/adopt/kinds``.
        root: The folder that its files may lie in.
        graphs: Path of each graph relative to ``root``, POSIX; one file may play both.
        variant: Which of several graphs of the package this is, such as ``q4f16``; empty where there is one.
        settings: What the package's own settings say, in words, for the report.
    """

    kind: str
    root: Path
    graphs: dict[GraphKind, str]
    variant: str = ""
    settings: dict[str, str] = field(default_factory=dict)


class Kind(Protocol):
    """A module in ``runners/adopt/kinds``."""

    def find(self, path: Path, variant: str) -> Package | None:
        """The package at a path, None where it is of another kind.

        Raises:
            BundleError: It is of this kind and cannot be read, or has no such variant.
        """
        ...


def find_package(path: Path, variant: str = "") -> Package:
    """The package at a path: an ``.onnx`` file or a folder.

    Args:
        path: What the user gave.
        variant: Which of several graphs, in the words of its kind; empty takes the usual one.

    Raises:
        BundleError: There is no package of a known kind.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such file or folder; expected an .onnx file or a folder that holds one")
    found = {module.name for module in pkgutil.iter_modules(_kinds().__path__)}
    for name in (*_ORDER, *sorted(found - set(_ORDER))):
        kind = cast(Kind, importlib.import_module(f"kvparity.runners.adopt.kinds.{name}"))
        package = kind.find(path, variant)
        if package is not None:
            return package
    raise BundleError(f"{path}: holds no ONNX decoder of a known kind ({', '.join(_ORDER)}); give its .onnx file")


def graph_roles(names: list[str]) -> dict[GraphKind, str]:
    """Which of several graph files plays a prompt and which what follows, by the names that exporters give them.

    Returns:
        Both kinds, or an empty dict where the names do not say.
    """
    if len(names) == 1:
        return {PREFILL: names[0], DECODE: names[0]}
    stems = {Path(name).stem.lower(): name for name in sorted(names)}
    merged = next((name for stem, name in stems.items() if "merged" in stem), None)
    if merged is not None:
        return {PREFILL: merged, DECODE: merged}
    later = next((name for stem, name in stems.items() if "with_past" in stem or "decode" in stem.split("_")), None)
    first = next((name for stem, name in stems.items() if "prefill" in stem or "prompt" in stem), None)
    first = first or next((name for stem, name in stems.items() if stem in ("decoder_model", "model")), None)
    return {PREFILL: first, DECODE: later} if first and later and first != later else {}


def check_links(path: Path, root: Path) -> None:
    """Refuse a file that is a link to somewhere else, but for hub caches, whose files are links to their ``blobs``.

    Args:
        path: The file.
        root: The package's folder.

    Raises:
        BundleError: The file is not in the package, or no file can have that name.
    """
    try:
        real = path.resolve()
        path.is_file()
    except (OSError, ValueError) as error:  # a null byte, a name of thousands of letters, half of a surrogate pair
        raise BundleError(f"{path.name[:40]!r}: no file can have this name; refused") from error
    hubs = [folder.parent / "blobs" for folder in root.absolute().parents if folder.name == "snapshots"]
    if not any(real.is_relative_to(folder.resolve()) for folder in (root, *hubs)):
        raise BundleError(f"{path.name}: is a link to a file outside the package; refused")


def read_json(path: Path) -> dict[str, Any]:
    """A settings file of a package.

    Raises:
        BundleError: It is not a JSON object, or absurdly large.
    """
    check_links(path, path.parent)
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise BundleError(f"{path}: {path.stat().st_size} bytes; expected a settings file of a few kilobytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not readable JSON ({lines_of(error)[0]})") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path}: expected a JSON object")
    return data


def _kinds() -> Any:
    return importlib.import_module("kvparity.runners.adopt.kinds")
