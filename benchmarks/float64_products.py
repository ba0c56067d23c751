"""A copy of a bundle whose products with weights are computed in float64: how much of a difference is the engine's?

python -m benchmarks.float64_products BUNDLE COPY
python cli.py compare COPY --allow-modified --live --tol 1e-4 --case 'text*'

What stays between the copy and PyTorch in float32 is PyTorch's own rounding, and that of the norms, rotary tables and
softmax; an engine of float32 products can't be expected to come nearer.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.passes.match import made_by, replace


def write_copy(bundle: Bundle, folder: Path) -> int:
    """Copy a bundle, with float64 products.

    Args:
        bundle: A float32 bundle.
        folder: Where the copy goes; must not exist.

    Returns:
        How many products of both graphs are float64 now.

    Raises:
        FileExistsError: The folder is there.
    """
    folder.mkdir(parents=True)
    graphs = {bundle.graph(kind).file.path: bundle.graph_path(kind) for kind in bundle.manifest.graphs}
    for entry in bundle.manifest.all_files():
        if entry.path not in graphs:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / entry.path, folder / entry.path)
    shutil.copyfile(bundle.root / "manifest.json", folder / "manifest.json")
    count = 0
    for name, path in graphs.items():
        model = ir.load(path)
        count += widen(model)
        ir.save(model, folder / name)
    return count


def widen(model: ir.Model) -> int:
    """Put casts around every MatMul whose second factor is a weight, as it is or turned; returns how many."""
    nodes = [node for node in model.graph if node.op_type == "MatMul" and _weight(node)]
    for node in nodes:
        wide = [ir.node("Cast", [value], attributes={"to": ir.DataType.DOUBLE}) for value in node.inputs]
        product = ir.node("MatMul", [cast.outputs[0] for cast in wide])
        model.graph.insert_before(node, [*wide, product])
        replace(model, node, "Cast", product.outputs, {"to": ir.DataType.FLOAT})
    common.TopologicalSortPass()(model)
    return len(nodes)


def _weight(node: ir.Node) -> bool:
    factor = node.inputs[1]
    turned = made_by(factor, "Transpose")
    value = turned.inputs[0] if turned is not None else factor
    return value is not None and value.is_initializer()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = write_copy(Bundle.open(Path(sys.argv[1])), Path(sys.argv[2]))
    print(f"{found} products in float64; bundle  {sys.argv[2]}")
