"""Who may import whom; found by reading the code, not by running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = "kvparity.exporter.contract"
USES_TORCH = {"float64.py", "rounding.py"}  # the two contract modules that PyTorch's side of both halves shares


def imports(path: Path, *, inside: bool = True) -> Iterator[str]:
    """Every imported module of a file, by default inside functions too; ``from package import x`` gives package.x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT / node.module.removeprefix("kvparity.").replace(".", "/")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if folder.is_dir() else [node.module]


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("exporter"), ids=str)
def test_the_exporter_never_imports_runners_or_click(path: Path) -> None:
    found = {name.removeprefix("kvparity.").split(".")[0] for name in imports(path)}
    assert not found & {"runners", "click", "cli"}


@pytest.mark.parametrize("path", files("runners"), ids=str)
def test_runners_see_only_the_contract_of_the_exporter(path: Path) -> None:
    used = {name for name in imports(path) if name.startswith(("kvparity.exporter", "exporter"))}
    assert not {name for name in used if not name.startswith(f"{CONTRACT}.")}
    assert "click" not in set(imports(path))


def test_package_layouts_that_runners_use_load_in_an_engine_s_own_environment() -> None:
    names = ("packages.genai", "packages.transformersjs", "files")
    code = (
        f"import sys, {', '.join(f'{CONTRACT}.{name}' for name in names)}\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'tokenizers', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", files("runners/diff"), ids=str)
def test_the_diff_needs_nothing_but_numpy(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "kvparity"}


@pytest.mark.parametrize("path", files("exporter/contract"), ids=str)
def test_the_contract_loads_with_numpy_and_pydantic_alone(path: Path) -> None:
    names = {name for name in imports(path, inside=False) if not name.startswith(f"{CONTRACT}.")}
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "pydantic", *(["torch"] if path.name in USES_TORCH else [])}


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, cli; cli.main(['--help']); "
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
