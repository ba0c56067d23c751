"""Who may import whom; found by reading the code, not by running it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {  # lines of code; raise one knowingly, with the change that needs it
    "exporter": 11_860,
    "exporter/checkpoint": 1_860,
    "exporter/contract": 3_360,
    "exporter/golden": 620,
    "exporter/model": 1_150,
    "exporter/passes": 1_840,
    "exporter/quantize": 580,
    "exporter/tinygemma": 690,
    "exporter/trace": 1410,
    "runners": 13_200,
    "runners/adopt": 1370,
    "runners/bench": 210,
    "runners/compare": 1_500,
    "runners/decode": 780,
    "runners/diff": 1180,
    "runners/engines": 2_860,
    "runners/inspect": 550,
    "runners/isolation": 490,
    "runners/locate": 2300,
    "runners/reference": 990,
    "runners/report": 1150,
    "kvparity": 980,
}
CONTRACT = "kvparity.exporter.contract"
USES_TORCH = {"float64.py", "rounding.py"}  # the two contract modules that PyTorch's side of both halves shares


def imports(path: Path, *, inside: bool = True) -> Iterator[str]:
    """Every imported module of a file, by default inside functions too; ``from package import x`` gives package.x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _without_types(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT / node.module.removeprefix("kvparity.").replace(".", "/")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if folder.is_dir() else [node.module]


def _without_types(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _without_types(node)


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


def _modules() -> dict[str, set[str]]:
    """Every module of both halves, and those of them that it imports."""
    paths = {f"kvparity.{_dotted(path)}": path for half in ("exporter", "runners") for path in files(half)}
    return {name: (set(imports(path)) & paths.keys()) - {name} for name, path in paths.items()}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Floor of every node: one more than the highest that it imports; a cycle raises CycleError, which names it."""
    floors: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        floors[name] = 1 + max((floors[below] for below in graph[name]), default=0)
    return floors


def test_no_module_imports_itself_in_a_circle() -> None:
    assert _floors(_modules())


def test_the_exporter_s_rooms_are_without_a_circle_and_stand_on_six_floors() -> None:
    rooms: dict[str, set[str]] = {}
    for name, used in _modules().items():
        if name.startswith("kvparity.exporter."):
            room = name.split(".")[2]
            below = {other.split(".")[2] for other in used if other.startswith("kvparity.exporter.")}
            rooms.setdefault(room, set()).update(below - {room})
    floors = _floors(rooms)
    assert max(floors.values()) <= 6, sorted(floors.items(), key=lambda item: item[1])


def code_lines(path: Path) -> int:
    """Lines with code: neither blank, nor comment, nor docstring."""
    text = path.read_text(encoding="utf-8")
    with path.open("rb") as file:
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in skipped]
    lines = {line for token in tokens[1:-1] for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("folder", BUDGETS)
def test_a_folder_keeps_its_budget_of_lines_of_code(folder: str) -> None:
    used = sum(code_lines(path) for path in (ROOT / folder).rglob("*.py"))
    assert used <= BUDGETS[folder], f"{folder} has {used} lines of code: leave out, generalise, or raise the budget"


def test_every_folder_has_a_budget() -> None:
    found = {"kvparity"}
    for half in ("exporter", "runners"):
        found |= {half, *(f"{half}/{room.name}" for room in (ROOT / half).iterdir() if any(room.glob("*.py")))}
    assert found == BUDGETS.keys()


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, cli; cli.main(['--help']); "
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
