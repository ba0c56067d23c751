"""A folder that every engine can read: the bundle's own, or one of hard links where its weights are links elsewhere.

ONNX Runtime reads external data whose real file lies in the folder of the graph, or in that of the graph's own real
file, which is how hub caches lie; other links it refuses.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kvparity.exporter.contract.bundle import MANIFEST, Bundle, inside
from kvparity.exporter.contract.files import link_file, scratch_folder

__all__ = ["link_files", "plain_folder", "scratch_near"]

_made: dict[tuple[object, ...], tempfile.TemporaryDirectory[str]] = {}  # until the process ends: sessions load late


def plain_folder(bundle: Bundle) -> Bundle:
    """The bundle, or the same one in a temporary folder where an engine would refuse its links."""
    entries = (*bundle.manifest.weights, *(graph.file for graph in bundle.manifest.graphs.values()))
    files = [inside(bundle.root, entry.path) for entry in entries]
    if _readable(bundle):
        return bundle
    key = tuple((str(file.absolute()), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    if key not in _made:
        _made[key] = scratch_near(bundle)
        names = [MANIFEST, *(entry.path for entry in (*entries, *bundle.manifest.files))]
        link_files(bundle, Path(_made[key].name), names)
    return Bundle(Path(_made[key].name), bundle.manifest)


def _readable(bundle: Bundle) -> bool:
    """Whether ONNX Runtime takes the weights where they are."""
    weights = [inside(bundle.root, entry.path).resolve() for entry in bundle.manifest.weights]
    graphs = [inside(bundle.root, graph.file.path) for graph in bundle.manifest.graphs.values()]
    folders = [(graph.parent.resolve(), graph.resolve().parent) for graph in graphs]
    return all(any(file.is_relative_to(folder) for folder in pair) for file in weights for pair in folders)


def link_files(bundle: Bundle, folder: Path, names: Iterable[str]) -> None:
    """Put files of a bundle into a folder, as hard links where the disk allows it and copies elsewhere."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link_file(inside(bundle.root, name), folder / name)


def scratch_near(bundle: Bundle) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the disk of a bundle's weights, if one can be had, so that nothing is copied."""
    weights = [inside(bundle.root, entry.path).resolve() for entry in bundle.manifest.weights[:1]]
    wished = [Path(tempfile.gettempdir()), bundle.root.absolute().parent, *(file.parent for file in weights)]
    disk = weights[0].stat().st_dev if weights else None
    near = [folder for folder in wished if folder.stat().st_dev == disk and os.access(folder, os.W_OK)]
    return scratch_folder(".kvparity-links-", (near or wished)[0])
