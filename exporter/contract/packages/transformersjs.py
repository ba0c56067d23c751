"""A folder for transformers.js: onnx/model.onnx, its data beside it, a config of a type that it knows, tokenizer."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from kvparity.exporter.contract.bundle import Bundle, inside
from kvparity.exporter.contract.errors import PackageError
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.model_files import adds_tokens, read_settings
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
from kvparity.exporter.contract.packages._sampling import unheeded
from kvparity.exporter.contract.spec import DECODE, ModelSpec

__all__ = ["TOOL", "readme", "refuse", "write"]

TOOL = "@huggingface/transformers"
# The graph holds the whole model, so any type of a plain decoder will do. This one names caches by number, up to
# num_hidden_layers, and counts positions from 0; gemma3_text counts from 1, and gemma4_text is unknown.
TYPE = "llama"
_MOST_FILES = 100  # of external data
_DTYPES = {"none": "fp32", "int4": "q4", "int8": "int8", "gguf": "q4", "int8-dynamic": "q8"}  # of weights
_HALF = {"none": "fp16", "int4": "q4f16"}  # the same in a float16 bundle, where there is a name of its own
_SUFFIXES = {"fp32": "", "q8": "_quantized"}  # of the graph's file; that of any other is its name

_README = """# $folder: a package for transformers.js

```js
import { env, pipeline } from "@huggingface/transformers";
Object.assign(env, { allowLocalModels: true, allowRemoteModels: false });
const generate = await pipeline("text-generation", "./$folder");  // a path from where you are; in a browser an address
const [{ generated_text }] = await generate("Once upon", { max_new_tokens: 80, do_sample: false });
console.log(generated_text);
```

$made

`config.json` calls it a $type: transformers.js must know the type and has no other use for it, because the graph is the
whole model.

Optimum loads the same folder in Python, where it is told where the graph is:

```python
from optimum.onnxruntime import ORTModelForCausalLM

model = ORTModelForCausalLM.from_pretrained("$folder", subfolder="onnx", file_name="$graph")
```

What transformers.js cannot do with it:

$notes- compute rightly on every GPU: WebGPU's Sin and Cos were off by 2e-4 on one in software, and with them the rotary
  tables that the graph computes.
"""
_SHORT_CACHES = """\
- go on from the caches of an earlier `generate()`: it takes the rows of the first cache for the tokens so far, and
  sliding caches keep fewer; export with `--sliding-cache full` for that$optimum;
"""
_OPTIMUM = " and for Optimum, which counts the same way"
_UNHEEDED = """\
- heed all that generation_config.json sets: it does not use $names;
"""
_ONE_ROW = """\
- go on from a past with several tokens in a batch: the graph's GroupQueryAttention takes one row then;
"""
# What it reads and uses; top_p is read and not used (a TODO in its source), and sampling among beams is none.
_HEEDED = (
    *("do_sample", "temperature", "top_k", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("min_length", "min_new_tokens", "max_new_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "guidance_scale"),
)
_CODES = """\
- look up quantised embeddings in a browser: onnxruntime-web has no GatherBlockQuantized for its CPU, where Node has it;
  export with `--keep embed` for that;
"""


def refuse(bundle: Bundle) -> None:
    """Refuse what transformers.js cannot load.

    Raises:
        PackageError: Says what to export instead.
    """
    refuse_others("transformersjs", bundle, "layout", "dynamic")
    refuse_no_rows("transformersjs", bundle)
    if any(slot.kv_heads and slot.states for slot in bundle.model.slots) and not _all_hybrid(bundle.model):
        raise PackageError(
            f"transformersjs knows layers that keep keys and values beside a state where all layers do, and in "
            f"{bundle.model.model_type} some do; load the bundle's own graphs with ONNX Runtime"
        )
    refuse_others("transformersjs", bundle, "profile", "portable", "modern", "ort")
    refuse_others("transformersjs", bundle, "dtype", "float32", "float16")
    if len(bundle.manifest.weights) > _MOST_FILES:
        raise PackageError(
            f"transformersjs loads at most {_MOST_FILES} files of weights, and this bundle has "
            f"{len(bundle.manifest.weights)}; save the checkpoint in fewer shards"
        )


def write(bundle: Bundle, folder: Path, place: Place, kind: str = TYPE) -> None:
    """Write what transformers.js reads.

    Args:
        bundle: One that :func:`refuse` lets pass.
        folder: To write to.
        place: How a file of the bundle gets there.
        kind: Model type that transformers.js is told.
    """
    graph = _graph_name(bundle)
    (folder / "onnx").mkdir()
    data = _write_graph(bundle.graph_path(DECODE), folder / "onnx" / graph)
    for location, name in data.items():
        place(inside(bundle.root, location), folder / "onnx" / name)
    write_json(folder / "config.json", _config(bundle, kind, {graph: len(data)} if data else None))
    settings = read_settings(bundle.root / "generation_config.json")
    write_json(folder / "generation_config.json", {**settings, **token_ids(bundle)})
    place_tokenizer(bundle, folder, place)
    if (folder / "tokenizer.json").is_file():
        _settle_tokenizer(folder)


def _dtype(bundle: Bundle) -> str:
    """What transformers.js calls the numbers of a bundle's graph, and looks for in its file's name."""
    options = bundle.options
    names = {**_DTYPES, **_HALF} if options.dtype == "float16" else _DTYPES
    return names[options.quantize]


def _graph_name(bundle: Bundle) -> str:
    dtype = _dtype(bundle)
    return f"model{_SUFFIXES.get(dtype, f'_{dtype}')}.onnx"


def _config(bundle: Bundle, kind: str, data: dict[str, int] | None) -> dict[str, Any]:
    """Only what transformers.js asks of a decoder: the rest of the model's own config is in the graph.

    A dtype stands here because a browser asks for a quantised graph where none is named.
    """
    model = bundle.model
    slot = next(slot for slot in model.slots if slot.kv_heads)
    kind, types = _type_of(model, kind)
    own = {"dtype": _dtype(bundle), **({"use_external_data_format": data} if data else {})}
    return {
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.heads,
        "num_key_value_heads": slot.kv_heads,
        "head_dim": slot.head_dim,
        "num_hidden_layers": len(model.slots),
        "max_position_embeddings": model.max_position,
        **({"layer_types": types} if types else {}),
        **token_ids(bundle),
        "transformers.js_config": own,
    }


def _type_of(model: ModelSpec, kind: str) -> tuple[str, list[str]]:
    """The type whose caches have the parts that a model keeps, and what it calls the layers; none where all are one."""
    states = state_kinds(model)
    if "ssm_state" in states:
        names = {"full_attention": "attention", "mamba": "mamba"}
        types = [] if _all_hybrid(model) else [names[name] for name in layer_types(model, "mamba")]
        return "granitemoehybrid", types
    if "recurrent_state" in states:
        return "qwen3_next", layer_types(model, "linear_attention")
    return ("lfm2", layer_types(model, "conv")) if states else (kind, [])


def _all_hybrid(model: ModelSpec) -> bool:
    return all(slot.kv_heads and slot.states for slot in model.slots)


def _port_name(name: str) -> str:
    """``past_conv.N`` and ``present_conv.N`` for the states, ``past_recurrent.N``, ``past_ssm.N`` and so on."""
    stem, dot, part = name.rpartition(".")
    if not part.endswith("_state"):
        return name
    side, _, slot = stem.rpartition(".")
    return f"{side.removesuffix('_key_values')}_{part.removesuffix('_state')}{dot}{slot}"


def _write_graph(source: Path, target: Path) -> dict[str, str]:
    """Write a graph that looks for its data under the names that transformers.js loads, and sizes first caches rightly.

    transformers.js knows one symbolic size, ``batch_size``; any other is 0 in the caches of a first call.

    Returns:
        File of the bundle to its name in the package.
    """
    import onnx_ir as ir

    model = load_graph_file(source)
    names: dict[str, str] = {}
    for value in model.graph.initializers.values():
        value.shape, value.type = None, None  # the tensor has both
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            number = f"_{len(names)}" if names else ""
            name = names.setdefault(str(tensor.location), f"{target.name}_data{number}")
            value.const_value = ir.ExternalTensor(
                name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name
            )
    for port in (*model.graph.inputs, *model.graph.outputs):  # no other value of a bundle's graph has a shape
        assert port.shape is not None
        sizes = [size.value if isinstance(size, ir.SymbolicDim) else size for size in port.shape]
        port.shape = ir.Shape("batch_size" if size == "batch" else size for size in sizes)
        port.name = _port_name(str(port.name))
    ir.save(model, target)
    return names


def _settle_tokenizer(folder: Path) -> None:
    """Say in the tokenizer's settings what a pipeline does not find out: the tokens around a text."""
    path = folder / "tokenizer_config.json"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **read_settings(path)}
    path.unlink(missing_ok=True)  # it may be a link to the bundle's
    if adds_tokens(folder):
        settings["add_bos_token"] = True
    write_json(path, settings)


def readme(bundle: Bundle, folder: str) -> str:
    """The package's README: how to load it, what it is, what transformers.js cannot do with it."""
    model, options, names = bundle.model, bundle.options, unheeded(bundle, _HEEDED)
    bounded = model.window is not None and options.bounded
    counted = _OPTIMUM if model.slots[0].window is not None else ""
    notes = Template(_SHORT_CACHES).substitute(optimum=counted) if bounded else ""
    notes += Template(_UNHEEDED).substitute(names=names) if names else ""
    notes += _ONE_ROW if options.groups_queries else ""
    notes += _CODES if options.quantize != "none" and _looks_up_codes(bundle.graph_path(DECODE)) else ""
    words = {"folder": folder, "made": made_from(bundle), "type": TYPE, "notes": notes, "graph": _graph_name(bundle)}
    return Template(_README).substitute(words)


def _looks_up_codes(graph: Path) -> bool:

    return any(node.op_type == "GatherBlockQuantized" for node in load_graph_file(graph).graph)
