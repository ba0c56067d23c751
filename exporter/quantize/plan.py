"""Which weights are quantised: those of linear layers, experts and embeddings, except the kinds that are to be kept.

The kind of a weight is the last part of its module's path (``q_proj``, ``embed_tokens``, ``experts``);
``embed``, ``attention``, ``mlp`` and ``vocabulary``, the token embedding and the head, stand for several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions

__all__ = ["plan"]

_GROUPS = {"embed": "embed", "attention": "attn.", "mlp": "mlp."}
_VOCABULARY = "vocabulary"


def plan(meta_model: Any, options: ExportOptions) -> dict[str, int]:
    """Weights to quantise, named as by :func:`exporter.checkpoint.weights.weight_names`, and the bits of their codes.

    Args:
        meta_model: The model without weights.
        options: What was asked.

    Raises:
        ExportError: The options contradict each other, a kind is unknown, or blocks do not fit a weight.
    """
    if options.quantize == "none":
        if options.accuracy_level:
            raise ExportError("--accuracy-level is for weights in blocks, --quantize gguf, int4 or int8; leave it out")
        return {}
    _check(options)
    shapes = _shapes(meta_model)
    kept, wide = (_names(meta_model, shapes, f"--{name}", getattr(options, name)) for name in ("keep", "int8"))
    chosen = [name for name in shapes if name not in kept]
    if not chosen:
        raise ExportError("--keep leaves nothing to quantise; keep fewer kinds or leave --quantize out")
    if options.quantize != "gguf":
        blocked = [name for name in chosen if options.quantize != "int8-dynamic" or len(shapes[name]) > 2]
        _check_fit({name: shapes[name][-1] for name in blocked}, options.block_size)
    return {name: 4 if options.quantize == "int4" and name not in wide else 8 for name in chosen}


def _names(meta_model: Any, shapes: Iterable[str], option: str, kinds: Sequence[str]) -> set[str]:
    """The weights that some kinds name."""
    tables = [table.weight for table in _tables(meta_model)]
    vocabulary = {name for name, weight in meta_model.named_parameters() if any(weight is table for table in tables)}
    by_kind: dict[str, set[str]] = {_VOCABULARY: vocabulary & {*shapes}}
    for name in shapes:
        groups = (group for group, part in _GROUPS.items() if part in name.rsplit(".", 1)[0])
        for kind in (_kind(name), *groups):
            by_kind.setdefault(kind, set()).add(name)
    for kind in kinds:
        if kind not in by_kind:
            known = ", ".join(sorted(by_kind))
            raise ExportError(f"{option} {kind}: no such kind of layer in this model; it has {known}")
    return {name for kind in kinds for name in by_kind[kind]}


def _tables(meta_model: Any) -> list[Any]:
    """The token embedding and the head."""
    both = meta_model.get_input_embeddings(), meta_model.get_output_embeddings()
    return [table for table in both if table is not None]


def _check(options: ExportOptions) -> None:
    way = f"--quantize {options.quantize}"
    if options.profile == "bare":
        raise ExportError(f"{way}: profile bare promises plain float operators; use --profile ort, portable or modern")
    if options.quantize != "int4" and options.int8 != ExportOptions().int8:
        raise ExportError(f"{way}: --int8 names kinds for --quantize int4; leave it out")
    if options.dtype == "bfloat16":
        raise ExportError(f"{way}: ONNX Runtime's CPU multiplies quantised weights in float32 and float16 only")
    if options.quantize in ("int8-dynamic", "gguf"):
        if options.dtype != "float32":
            whose = "a GGUF file's scales are" if options.quantize == "gguf" else "ONNX's DynamicQuantizeLinear takes"
            raise ExportError(f"{way}: {whose} float32 only; leave --dtype out")
        for option, value in (
            ("--quantizer", options.quantizer != "rtn"),
            ("--accuracy-level", options.accuracy_level and options.quantize == "int8-dynamic"),
        ):
            if value:
                raise ExportError(f"{way}: {option} is for weights in blocks, --quantize int4 or int8; leave it out")
    size = options.block_size
    if size < 16 or size & (size - 1):
        raise ExportError(f"--block-size {size}: expected a power of two of at least 16, as MatMulNBits takes it")


def _shapes(meta_model: Any) -> dict[str, tuple[int, ...]]:
    """(rows, columns), or (experts, rows, columns), by canonical name; a tied table once, as the embedding."""
    from torch import nn

    seen: set[int] = set()
    found: dict[str, tuple[int, ...]] = {}
    for path, module in meta_model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[f"{path}.weight"] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and parameter.is_floating_point():
                found[f"{path}.{name}"] = tuple(int(size) for size in parameter.shape)
    return found


def _kind(name: str) -> str:
    return name.split(".")[-2]


def _check_fit(columns: Mapping[str, int], block_size: int) -> None:
    """Every weight's columns are whole blocks."""
    unfit = [name for name, count in columns.items() if count % block_size]
    if unfit:
        fits = [size for size in (128, 64, 32, 16) if not any(count % size for count in columns.values())]
        other = f"--block-size {fits[0]} fits all, or " if fits else ""
        kinds = ",".join(sorted({_kind(name) for name in unfit}))
        raise ExportError(
            f"--block-size {block_size} does not divide the {columns[unfit[0]]} columns of {unfit[0]}; "
            f"{other}--keep {kinds}"
        )
