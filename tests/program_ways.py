"""A small Llama's prefill graph, captured; what tests compare."""

from __future__ import annotations

from collections import Counter

__all__ = ["operators"]


def operators() -> Counter[str]:
    """How often each operator stands in the graph, once shapes are folded."""
    from transformers import AutoModelForCausalLM

    from kvparity.exporter.checkpoint.model_spec import model_spec
    from kvparity.exporter.contract.ports import graph_spec, resolve_options
    from kvparity.exporter.contract.spec import PREFILL, ExportOptions
    from kvparity.exporter.model.attention import ATTENTION, register_attention
    from kvparity.exporter.passes.fold_constants import drop_casts, simplify
    from kvparity.exporter.trace.capture import capture
    from tests.families import by_name, make_config

    register_attention()
    model = AutoModelForCausalLM.from_config(make_config(by_name("llama")), attn_implementation=ATTENTION).eval()
    spec = model_spec(model.config, model, "float32")
    options = resolve_options(ExportOptions(), spec)
    captured = capture(model, spec, graph_spec(PREFILL, spec, options), options)
    drop_casts(captured.model)
    simplify(captured.model, captured.weights)
    return Counter(node.op_type for node in captured.model.graph)
