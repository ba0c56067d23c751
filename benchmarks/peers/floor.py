"""What nobody can beat: a model's matrix products alone, in ONNX Runtime for a token, in numpy for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

EXPORT_OF = "kvparity_ort"  # its weights, read from where they are


class Products:
    """Every MatMul of decode.onnx with a weight, alone and chained by nothing; looks like a decoder."""

    def __init__(self, folder: Path, threads: int) -> None:
        graph, self._shapes, self._sources = only_products(folder / "decode.onnx")
        self.bytes = sum(rows * columns for rows, columns in self._shapes) * 4
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 3
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for rows in self._sources:
            self._binding.bind_cpu_input(f"x{rows}", np.ones((1, 1, rows), np.float32))
        for index, (_, columns) in enumerate(self._shapes):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, columns), np.float32))
            self._binding.bind_ortvalue_output(f"y{index}", value)
        layers = self._shapes[:-1]  # a prompt needs the head for its last token only
        self._block = np.ones(max(rows * columns for rows, columns in layers), np.float32)
        self._logits = np.zeros(1, np.float32)

    def reset(self) -> None:
        """Nothing to forget."""

    def feed(self, ids: Any) -> Any:
        """The products of one token, or those of a prompt."""
        if len(ids) == 1:
            self._session.run_with_iobinding(self._binding)
        else:
            tokens = {rows: np.ones((len(ids), rows), np.float32) for rows in self._sources}
            for rows, columns in self._shapes[:-1]:
                tokens[rows] @ self._block[: rows * columns].reshape(rows, columns)
        return self._logits


def only_products(path: Path) -> tuple[bytes, list[tuple[int, int]], list[int]]:
    """The graph, (rows, columns) of each product, and the widths of its inputs; weights stay in the bundle's file."""
    model = ir.load(path)
    shapes: list[tuple[int, int]] = []
    nodes, weights = [], []
    sources: dict[int, ir.Value] = {}
    for node in model.graph:
        turned = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        weight = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.shape is None:
            continue
        columns, rows = (int(str(size)) for size in weight.shape)
        width = ir.Input(f"x{rows}", ir.Shape([1, 1, rows]), ir.TensorType(ir.DataType.FLOAT))
        own = ir.Value(name=f"w{len(shapes)}", const_value=weight.const_value)
        transpose = ir.node("Transpose", [own], {"perm": [1, 0]})
        product = ir.node("MatMul", [sources.setdefault(rows, width), transpose.outputs[0]])
        transpose.outputs[0].name = f"t{len(shapes)}"
        product.outputs[0].name, product.outputs[0].type = f"y{len(shapes)}", ir.TensorType(ir.DataType.FLOAT)
        nodes += [transpose, product]
        weights.append(own)
        shapes.append((rows, columns))
    outputs = [node.outputs[0] for node in nodes if node.op_type == "MatMul"]
    versions = {"": 18}
    graph = ir.Graph(
        [*sources.values()], outputs, nodes=nodes, initializers=weights, opset_imports=versions, name="floor"
    )
    return ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString(), shapes, [*sources]


def open(folder: Path, threads: int) -> Products:
    return Products(folder, threads)
