"""What nobody can beat: a graph of nothing but a model's matrix products, and how fast memory can be read.

    python benchmarks/floor.py BUNDLE [--threads 1]

Decode: every MatMul with a weight of decode.onnx, alone, chained by nothing, in ONNX Runtime with bound buffers.
Prefill: numpy's sgemm of the same sizes for 512 tokens. Memory: bytes of weights per token / copy bandwidth.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

ROUNDS = 200


def products(path: Path) -> list[tuple[int, int]]:
    """(rows, columns) of every weight that decode.onnx multiplies with, transposed as stored."""
    model = ir.load(path)
    found: list[tuple[int, int]] = []
    for node in model.graph:
        turned = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        weight = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
        if weight is not None and weight.is_initializer() and weight.shape is not None:
            columns, rows = (int(size) for size in weight.shape)
            found.append((rows, columns))
    return found


def only_products(shapes: list[tuple[int, int]], threads: int) -> Any:
    """A callable that runs all products of one token once."""
    inputs, nodes, outputs, initializers = {}, [], [], []
    for index, (rows, columns) in enumerate(shapes):
        source = inputs.setdefault(rows, ir.Input(f"x{rows}", ir.Shape([1, 1, rows]), ir.TensorType(ir.DataType.FLOAT)))
        values = np.random.default_rng(index).standard_normal((rows, columns), np.float32)
        weight = ir.Value(name=f"w{index}", const_value=ir.tensor(values, name=f"w{index}"))
        node = ir.node("MatMul", [source, weight])
        node.outputs[0].name, node.outputs[0].type = f"y{index}", ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        outputs.append(node.outputs[0])
        initializers.append(weight)
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=nodes, initializers=initializers, opset_imports={"": 18}, name="floor"
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    proto = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for rows in inputs:
        binding.bind_cpu_input(f"x{rows}", np.ones((1, 1, rows), np.float32))
    for index, (_, columns) in enumerate(shapes):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, columns), np.float32))
        binding.bind_ortvalue_output(f"y{index}", value)
    return lambda: session.run_with_iobinding(binding)


def timed(run: Any, rounds: int) -> tuple[float, float]:
    """(median, fastest tenth) in milliseconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - start) * 1000)
    return float(np.median(seconds)), float(np.quantile(seconds, 0.1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    shapes = products(given.bundle / "decode.onnx")
    size = sum(rows * columns for rows, columns in shapes) * 4
    print(f"{len(shapes)} products, {size / 1e6:.1f} MB of weights per token, {given.threads} thread(s)")
    median, low = timed(only_products(shapes, given.threads), ROUNDS)
    print(f"products alone, one token: {median:.3f} ms (fastest tenth {low:.3f})")
    tokens = {rows: np.ones((512, rows), np.float32) for rows, _ in shapes}
    weights = [np.ones(shape, np.float32) for shape in shapes]
    median, low = timed(lambda: [tokens[weight.shape[0]] @ weight for weight in weights], 5)
    print(f"products alone, 512 tokens in numpy: {median:.1f} ms (fastest tenth {low:.1f})")
    block, copy = np.ones(64 << 20, np.uint8), np.empty(64 << 20, np.uint8)
    median, low = timed(lambda: np.copyto(copy, block), 9)
    bandwidth = 64 * 2**20 / low / 1e6
    print(f"copy bandwidth {bandwidth:.1f} GB/s: weights can be read once in {size / bandwidth / 1e6:.3f} ms")


if __name__ == "__main__":
    main()
