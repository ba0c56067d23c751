"""Shared by all tests: the tiny checkpoint and its bundle, exported once per run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "artifacts" / "tinygemma4text3m" / "hf"

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint, exported with all default cases; tests must not change it."""
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    target = tmp_path_factory.mktemp("tiny") / "bundle"
    return export(resolve(str(TINY)), target, ExportOptions(), record=record_cases)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy model of the mutants, with every feature of Gemma 4; tests must not change it."""
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    from tests.mutants.subject import make_subject

    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture
def tiny_copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))
