"""A small Llama's prefill graph, captured; what tests compare."""

from __future__ import annotations

from collections import Counter

__all__ = ["operators"]


def operators() -> Counter[str]:
    """How often each operator stands in the graph, once shapes are folded."""
    from transformers import AutoModelForCausalLM

    from exporter.attention import ATTENTION, register_attention
    from exporter.capture import capture
    from exporter.describe import model_spec
    from exporter.passes.simplify import drop_casts, simplify
    from exporter.ports import graph_spec, settled
    from exporter.spec import PREFILL, ExportOptions
    from tests.families import by_name, make_config

    register_attention()
    model = AutoModelForCausalLM.from_config(make_config(by_name("llama")), attn_implementation=ATTENTION).eval()
    spec = model_spec(model.config, model, "float32")
    options = settled(ExportOptions(), spec)
    captured = capture(model, spec, graph_spec(PREFILL, spec, options), options)
    drop_casts(captured.model)
    simplify(captured.model, captured.weights)
    return Counter(node.op_type for node in captured.model.graph)
