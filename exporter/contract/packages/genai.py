"""A folder for ONNX Runtime GenAI: decode.onnx, which serves whole conversations, weights, settings and tokenizer."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from kvparity.exporter.contract.bundle import Bundle, inside
from kvparity.exporter.contract.errors import PackageError
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.packages._parts import (
    Place,
    layer_types,
    made_from,
    place_tokenizer,
    refuse_no_rows,
    refuse_others,
    state_kinds,
    token_ids,
    write_json,
)
from kvparity.exporter.contract.packages._sampling import generation_settings, unheeded
from kvparity.exporter.contract.spec import DECODE

__all__ = ["TOOL", "genai_config", "port_name", "readme", "refuse", "write"]

TOOL = "onnxruntime-genai"
CONVOLUTIONS = "lfm2"  # its type of models with short convolutions beside attention
TYPE = "decoder"  # what GenAI calls a decoder of no known family; it then adds nothing of its own

_README = """# $folder: a package for ONNX Runtime GenAI

```python
import onnxruntime_genai as og

model = og.Model("$folder")
tokenizer = og.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")  # GenAI leaves out what begins a text; a chat template has it
prompt, parameters = tokenizer.encode("Once upon"), og.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + 80)
generator = og.Generator(model, parameters)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

$made

What GenAI cannot do with it:

- take a batch whose prompts have pad tokens of their own: it masks all of them;
$limits- serve requests of different lengths together through its `Engine`: the shorter ones' text is wrong;
- begin another turn right after one that ended for its length and not with an end token: the last token has not been
  run then, so call `generator.get_logits()` before the next `append_tokens()`;
- share a buffer between past and present: the graph returns new caches, leave `past_present_share_buffer` false.
"""
_SHORT = """\
- continue a batch of prompts of different lengths past $window tokens: it pads on the right, and sliding layers, which
  see the last $window slots, then see padding instead of the shorter prompts;
"""
_STATES = """\
- take prompts of different lengths in one batch: it pads on the right, and states of the shorter ones end in padding;
"""
_LAST = """\
- take prompts of different lengths in one batch: it pads on the right, and the graph returns the logits of the last
  position alone (`--logits last`), which is padding for the shorter ones; export with `--logits all` for that;
"""
_ONE_ROW = """\
- append several tokens at once to a batch that has a past: the graph's GroupQueryAttention takes one row then;
"""
_UNHEEDED = """\
- heed all that the model's generation_config.json sets: it has no $names;
"""
_SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # transformers' defaults
_HEEDED = (*_SAMPLING, "repetition_penalty", "no_repeat_ngram_size", "min_length")


def refuse(bundle: Bundle) -> None:
    """Refuse what GenAI cannot load or would compute wrongly.

    Raises:
        PackageError: Says what to export instead.
    """
    refuse_others("genai", bundle, "layout", "dynamic")
    refuse_no_rows("genai", bundle)
    refuse_others("genai", bundle, "profile", "portable", "modern", "ort")
    if bundle.model.window is not None and bundle.options.bounded:
        raise PackageError(
            "genai allocates caches by total length, and this bundle's sliding caches are bounded; "
            "export with --sliding-cache full"
        )


def write(bundle: Bundle, folder: Path, place: Place, kind: str = TYPE) -> None:
    """Write what GenAI reads.

    Args:
        bundle: One that :func:`refuse` lets pass.
        folder: To write to.
        place: How a file of the bundle gets there.
        kind: Model type that GenAI is told.
    """
    graph = bundle.graph(DECODE).file.path
    for entry in bundle.manifest.weights:
        place(inside(bundle.root, entry.path), folder / entry.path)
    if "ssm_state" in state_kinds(bundle.model):
        _write_renamed(bundle.graph_path(DECODE), folder / graph)
    else:
        place(inside(bundle.root, graph), folder / graph)
    place_tokenizer(bundle, folder, place)
    write_json(folder / "genai_config.json", genai_config(bundle, kind))


def port_name(name: str) -> str:
    """What GenAI's loop calls a port: the state of any recurrence is a ``recurrent_state``."""
    return name.replace(".ssm_state", ".recurrent_state")


def _write_renamed(source: Path, target: Path) -> None:
    import onnx_ir as ir

    model = load_graph_file(source)
    for port in (*model.graph.inputs, *model.graph.outputs):
        port.name = port_name(str(port.name))
    ir.save(model, target)


def genai_config(bundle: Bundle, kind: str = TYPE) -> dict[str, Any]:
    """What GenAI must be told of a bundle.

    Heads and their size stand here for other readers: GenAI takes those of every layer from the graph. Buffers that
    past and present share would have to be written in place, which these graphs do not.
    """
    model = bundle.model
    slot = next(slot for slot in model.slots if slot.kv_heads)
    parts = {"key": "key", "value": "value"}
    states, extra = state_kinds(model), dict[str, Any]()
    if states:
        parts |= {"conv": "conv_state", "recurrent": "recurrent_state"}
    if states == {"conv_state"}:  # a cache of its own in GenAI, which needs the layers' kinds
        kind, parts = CONVOLUTIONS, {name: part for name, part in parts.items() if name != "recurrent"}
        extra["layer_types"] = layer_types(model, "conv")
        extra["conv_cache_size"] = next(state.shape[-1] + 1 for one in model.slots for state in one.states)
    decoder = {
        "session_options": {"log_id": "genai", "provider_options": []},
        "filename": bundle.graph(DECODE).file.path,
        "head_size": slot.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.heads,
        "num_hidden_layers": len(model.slots),
        "num_key_value_heads": slot.kv_heads,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            **{f"past_{name}_names": f"past_key_values.%d.{part}" for name, part in parts.items()},
        },
        "outputs": {
            "logits": "logits",
            **{f"present_{name}_names": f"present.%d.{part}" for name, part in parts.items()},
        },
        **extra,
    }
    return {
        "model": {
            "type": kind,
            "context_length": model.max_position,
            "vocab_size": model.vocab_size,
            "decoder": decoder,
            **token_ids(bundle),
        },
        "search": {"max_length": model.max_position, "past_present_share_buffer": False, **_search(bundle)},
    }


def _search(bundle: Bundle) -> dict[str, Any]:
    """How the next token is chosen, by the model's own settings; GenAI's names are transformers'."""
    found = generation_settings(bundle)
    sampling = _SAMPLING if found.get("do_sample") else {"do_sample": False}
    return {**sampling, **{name: found[name] for name in _HEEDED if name in found}}


def readme(bundle: Bundle, folder: str) -> str:
    """The package's README: how to load it, what it is, what GenAI cannot do with it."""
    options, names = bundle.options, unheeded(bundle, _HEEDED)
    limits = Template(_SHORT).substitute(window=bundle.model.window) if bundle.model.window is not None else ""
    limits += _STATES if bundle.model.has_states else _LAST if options.logits == "last" else ""
    limits += _ONE_ROW if options.groups_queries else ""
    limits += Template(_UNHEEDED).substitute(names=names) if names else ""
    return Template(_README).substitute(folder=folder, made=made_from(bundle), limits=limits)
