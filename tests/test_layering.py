"""Who may import whom; found by reading the code, not by running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Exporter modules that runners may use.
SHARED = {
    "spec",
    "ports",
    "host_inputs",
    "dtypes",
    "names",
    "cases",
    "vectors",
    "bundle",
    "errors",
    "features",
    "lift",
    "blocks",
    "quantization",
    "rounding",
    "folders",
    "model_files",
    "packages",
}
LISTED = {"families", "package"}  # what `list` tells of


def imports(path: Path) -> Iterator[str]:
    """Every imported module of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("exporter"), ids=str)
def test_the_exporter_never_imports_runners_or_click(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("runners", "click", "cli")}


@pytest.mark.parametrize("path", files("runners"), ids=str)
def test_runners_see_only_the_contracts_of_the_exporter(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("exporter.")}
    assert not used - SHARED - (LISTED if path.name == "listing.py" else set())
    assert "click" not in set(imports(path))


def test_package_layouts_that_runners_use_load_in_an_engine_s_own_environment() -> None:
    code = (
        "import sys, exporter.packages.genai, exporter.packages.transformersjs, exporter.folders\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'tokenizers', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", files("runners/diff"), ids=str)
def test_the_diff_needs_nothing_but_numpy(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "exporter", "runners"}


@pytest.mark.parametrize("name", ["spec", "cases", "vectors", "errors"])
def test_contracts_need_nothing_but_numpy(name: str) -> None:
    foreign = {item.split(".")[0] for item in imports(ROOT / "exporter" / f"{name}.py")}
    assert foreign - set(sys.stdlib_module_names) <= {"numpy", "exporter"}


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, cli; cli.main(['--help']); "
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
