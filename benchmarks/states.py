"""Decoding with states: time of a token after 64 to 16,000 tokens, beside the model's products with weights alone.

``python -m benchmarks.states [--size small|full] [--profile ort]`` makes a gated-delta and a Mamba-2 model of random
parameters (about 0.3 billion each at full size, 30 million at small; the first has one attention layer with one small
key-value head, the second none), exports them, and prints CPU time per token, medians of rounds that visit every
context in turn. Nothing but the ratios of one run counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.spec import DECODE, ExportOptions
from kvparity.exporter.export import export

CONTEXTS = (64, 1_000, 4_000, 16_000)
_SIZES = {"small": (512, 6, 8_000), "full": (1024, 24, 32_000)}  # hidden, layers, vocabulary


def main() -> None:
    """Run the command."""
    _command()


@click.command()
@click.option("--size", type=click.Choice(list(_SIZES)), default="full")
@click.option("--profile", type=click.Choice(["portable", "ort", "modern"]), default="ort")
@click.option("--rounds", default=30)
def _command(size: str, profile: str, rounds: int) -> None:
    for name, settings in _configs(*_SIZES[size]).items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = _exported(name, settings, Path(folder), profile)
            times = _times(bundle, rounds)
        products = times.pop("products")
        shown = ", ".join(f"{context} tokens {1000 * value:.2f} ms" for context, value in times.items())
        spread = max(times.values()) / min(times.values())
        click.echo(
            f"{name}, {bundle.model.parameters / 1e6:.0f} million parameters, {profile}: {shown}: largest / smallest "
            f"{spread:.2f}; products alone {1000 * products:.2f} ms, whole / products {times['64'] / products:.2f}"
        )


def _configs(hidden: int, layers: int, vocabulary: int) -> dict[str, dict[str, Any]]:
    shared = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary, "pad_token_id": 0}
    shared |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    types = ["linear_attention"] * (layers - 1) + ["full_attention"]  # transformers fails without one that attends
    delta = {"layer_types": types, "intermediate_size": 3 * hidden, "num_attention_heads": 2, "head_dim": 64}
    delta |= {"num_key_value_heads": 1, "linear_num_key_heads": hidden // 128, "linear_num_value_heads": hidden // 64}
    delta |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "max_position_embeddings": 32_768}
    mamba = {"num_heads": hidden // 32, "head_dim": 64, "n_groups": 1, "state_size": 128, "expand": 2}
    return {"qwen3_5_text": {**shared, **delta}, "mamba2": {**shared, **mamba, "num_hidden_layers": 2 * layers}}


def _exported(name: str, settings: dict[str, Any], folder: Path, profile: str) -> Bundle:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings), dtype=torch.float32)
    model.save_pretrained(folder / "checkpoint")
    del model
    return export(resolve(str(folder / "checkpoint")), folder / "bundle", ExportOptions(profile=profile))  # type: ignore[arg-type]


def _times(bundle: Bundle, rounds: int) -> dict[str, float]:
    """Median CPU seconds of a token by context, and of the products alone."""
    decode, products = _session(bundle.graph_path(DECODE)), _session(_products(bundle))
    random, found = np.random.default_rng(0), dict[str, list[float]]()
    runs: dict[str, tuple[Any, dict[str, Any]]] = {}
    for context in CONTEXTS:
        runs[str(context)] = (
            decode,
            {port.name: _filled(port.name, port.shape, random, context) for port in decode.get_inputs()},
        )
    runs["products"] = (
        products,
        {port.name: random.normal(size=port.shape).astype(np.float32) for port in products.get_inputs()},
    )
    for number in range(rounds + 3):
        for name, (session, feeds) in runs.items():
            start = time.process_time()
            session.run(None, feeds)
            if number >= 3:
                found.setdefault(name, []).append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def _filled(name: str, shape: list[Any], random: np.random.Generator, context: int) -> Any:
    """An input of a call of one token after ``context`` others."""
    if name == "input_ids":
        return np.full((1, 1), 5, np.int64)
    if name == "attention_mask":
        return np.ones((1, context + 1), np.int64)
    if name == "position_ids":
        return np.full((1, 1), context, np.int64)
    sizes = [size if isinstance(size, int) else 1 if size == "batch" else context for size in shape]
    return random.normal(size=sizes).astype(np.float32)


def _products(bundle: Bundle) -> Path:
    """A graph of the decode graph's products with weights, one row each, beside it."""
    model = load_graph_file(bundle.graph_path(DECODE))
    inputs: dict[int, ir.Value] = {}
    nodes, sums, weights = [], [], dict[ir.Value, None]()
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        turned = weight.producer() if weight is not None else None
        source = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else weight
        if source is None or source.const_value is None or len(source.const_value.shape) != 2:
            continue
        rows = int(source.const_value.shape[1 if turned is not None else 0])
        kind = ir.TensorType(ir.DataType.FLOAT)
        row = inputs.setdefault(rows, ir.Value(name=f"row.{rows}", type=kind, shape=ir.Shape([1, rows])))
        made = [] if turned is None else [ir.node("Transpose", [source], attributes={"perm": [1, 0]})]
        made.append(ir.node("MatMul", [row, made[0].outputs[0] if made else source]))
        made.append(ir.node("ReduceSum", [made[-1].outputs[0]], attributes={"keepdims": 0}))
        weights[source] = None
        nodes += made
        sums.append(made[-1].outputs[0])
    total = ir.node("Sum", sums)
    total.outputs[0].name, total.outputs[0].type = "total", ir.TensorType(ir.DataType.FLOAT)
    model.graph.initializers.clear()
    rows_in, made = list(inputs.values()), [*nodes, total]
    graph = ir.Graph(rows_in, [total.outputs[0]], nodes=made, initializers=list(weights), opset_imports={"": 18})
    path = bundle.root / "products.onnx"
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
