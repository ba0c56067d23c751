"""Judges a package that somebody else exported: adopts it, audits its weights, compares it with the checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvparity.exporter.checkpoint.source import Checkpoint
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.adopt.audit import Audit
    from kvparity.runners.adopt.package import Package

__all__ = ["Adopted", "adopted_bundle"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Adopted:
    """A package, adopted.

    Attributes:
        bundle: Its graphs with references from the checkpoint.
        audit: Its weights against the checkpoint's.
        left_out: What the package does not offer, for which cases were left out.
    """

    bundle: Bundle
    audit: Audit
    left_out: tuple[str, ...]


@contextmanager
def adopted_bundle(
    path: Path,
    checkpoint: Checkpoint,
    output: Path | None,
    *,
    variant: str,
    limit: int | None,
    seconds: float,
    megabytes: int | None,
    say: Say,
) -> Iterator[Adopted]:
    """A bundle of a foreign package, kept in ``output`` or gone at the end.

    Args:
        path: The package.
        checkpoint: What it is judged against.
        output: Folder that keeps the bundle; its references are taken again where package and checkpoint are the same.
        variant: Which of several graphs of the package.
        limit: Longest case in tokens.
        seconds: Most that one call of a graph may take.
        megabytes: Most memory that a graph's process may take.
        say: Takes a line of progress at a time.
    """
    from kvparity.exporter.contract.files import new_folder
    from kvparity.exporter.contract.bundle import MANIFEST
    from kvparity.runners.adopt.package import find_package

    package = find_package(path, variant)
    if output is None:
        with tempfile.TemporaryDirectory(prefix="kvparity-judge-") as name:
            folder = Path(name) / "bundle"
            folder.mkdir()
            yield _adopt(package, checkpoint, folder, folder, limit, seconds, megabytes, say)
        return
    with new_folder(output, MANIFEST) as folder:
        made = _adopt(package, checkpoint, folder, output, limit, seconds, megabytes, say)
    yield replace(made, bundle=replace(made.bundle, root=output))


def _adopt(
    package: Package,
    checkpoint: Checkpoint,
    folder: Path,
    target: Path,
    limit: int | None,
    seconds: float,
    megabytes: int | None,
    say: Say,
) -> Adopted:
    from kvparity.exporter.adopted import describe_checkpoint
    from kvparity.exporter.contract.bundle import Bundle, file_entry, write_manifest
    from kvparity.exporter.contract.bundle import MANIFEST
    from kvparity.runners.adopt.adopt import FOLDER, adopt, playable
    from kvparity.runners.adopt.audit import audit_package
    from kvparity.runners.adopt.head import write_head
    from kvparity.runners.isolation.process import open_isolated
    from kvparity.runners.reference.model import load_reference
    from kvparity.runners.reference.record import record_cases

    def opener(bundle: Bundle, spec: Any) -> Any:
        limits = {"limit": f"{seconds:g}", **({"memory_mb": str(megabytes)} if megabytes else {})}
        return open_isolated(bundle, replace(spec, options={**spec.options, **limits}))

    side = describe_checkpoint(checkpoint, folder, target, limit)
    say(f"measuring {package.kind}")
    manifest = adopt(package, side.model, folder, opener)
    assert manifest.foreign is not None
    cases, left_out = playable(side.cases, manifest.foreign)
    say("auditing weights")
    reference = load_reference(checkpoint.files(), "float32", folder)
    audit = audit_package([folder / entry.file.path for entry in manifest.graphs.values()], reference)
    weights = write_head(folder, reference)
    del reference
    manifest = replace(
        manifest,
        source=checkpoint.source,
        revision=checkpoint.revision,
        checkpoint=side.origin,
        versions=side.versions,
        weights=weights,
    )
    say("recording references")
    recording = record_cases(Bundle(folder, manifest), cases, checkpoint.files())
    known = {entry.file.path for entry in manifest.graphs.values()} | {MANIFEST}
    others = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.relative_to(folder).parts[0] not in ("vectors", "cases")]
    files = tuple(file_entry(folder, p) for p in others if p.relative_to(folder).as_posix() not in known)
    manifest = replace(
        manifest,
        cases=recording.cases,
        noise=recording.noise,
        sequences=recording.sequences,
        head=recording.head,
        files=tuple(entry for entry in files if entry not in weights),
    )
    write_manifest(folder, manifest)
    assert (folder / FOLDER).is_dir()
    return Adopted(Bundle(folder, manifest), audit, left_out)
