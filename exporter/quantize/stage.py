"""The quantisation stage of an export: weights placed as they are become quantised ones, and the cost is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.checkpoint.tokenizer import sample_text
from kvparity.exporter.contract.blocks import BLOCKS, Blocks, quantized_names
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.quantization import Quality, Quantization
from kvparity.exporter.contract.spec import ExportOptions, ModelSpec
from kvparity.exporter.quantize.place import Placed, place_quantized
from kvparity.exporter.quantize.quality import cut, quality_of, quantised_tensors, reference_model

__all__ = ["held_blocks", "quantize_weights"]

Held = Callable[[str, npt.NDArray[Any]], Blocks | None]
_SEED = 1_000_129  # stories that neither the shipped checkpoint nor the cases have read


def quantize_weights(
    folder: Path,
    placements: Mapping[str, Placement],
    chosen: Mapping[str, int],
    config: Any,
    spec: ModelSpec,
    options: ExportOptions,
    text: Path | None = None,
    source: Held | None = None,
) -> tuple[dict[str, Placement], Quantization]:
    """Quantise the weights of a bundle being written and say what it cost.

    Args:
        folder: The bundle; tokenizer and weights are in it.
        placements: Where each weight lies, as it is.
        chosen: Weights to quantise, and the bits of their codes.
        config: transformers' config.
        spec: The model's description.
        options: How.
        text: A text file to measure on; None takes stories.
        source: See :func:`exporter.quantize.place.place_quantized`.
    """
    before = sum((folder / location).stat().st_size for location in {place.location for place in placements.values()})
    changes = options.quantize != "gguf" or options.rounds_activations
    name, windows, real = _windows(folder, spec, text)
    model = reference_model(config, folder, placements) if changes else None
    placed = place_quantized(folder, placements, chosen, options, source)
    if not quantized_names(placed.placements):
        raise ExportError("--quantize gguf: the file holds no quantised weights that could be kept; leave it out")
    quality = None
    if changes:
        changed = quantised_tensors(folder, placed.placements)
        quality = quality_of(model, changed, windows, name, options, real=real)
    return placed.placements, _describe(placed, placements, before, options, quality)


def held_blocks(checkpoint: Checkpoint, meta_model: Any, options: ExportOptions) -> Held | None:
    """What gives the blocks of a GGUF file's quantised weights; None for other checkpoints."""
    if checkpoint.gguf is None and options.quantize == "gguf":
        raise ExportError(
            f"--quantize gguf keeps what a GGUF file holds, and {checkpoint.source} is none; give MODEL.gguf, or "
            "--quantize int4"
        )
    if checkpoint.gguf is None or options.dtype != "float32" or options.quantize == "int8-dynamic":
        return None
    from kvparity.exporter.quantize.gguf import gguf_blocks

    return gguf_blocks(checkpoint.folder / checkpoint.gguf, meta_model)


def _windows(folder: Path, spec: ModelSpec, path: Path | None) -> tuple[str, npt.NDArray[np.int64], bool]:
    """Text in windows; random tokens where the model has no tokenizer."""
    text, name = None, "stories"
    if path is not None:
        try:
            text, name = path.read_text(encoding="utf-8"), path.name
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"--text {path}: not readable as text ({error})") from error
    ids: Sequence[int] = sample_text(folder, 4096, seed=_SEED, text=text)
    real = len(ids) > 1
    if not real:
        name = "random tokens"
        ids = np.random.default_rng(_SEED).integers(0, spec.vocab_size, 1024).tolist()
    return name, cut(ids, spec.vocab_size, spec.max_position, spec.bos_token_id), real


def _describe(
    placed: Placed,
    placements: Mapping[str, Placement],
    before: int,
    options: ExportOptions,
    quality: Quality | None,
) -> Quantization:
    chosen = quantized_names(placed.placements)
    bits: dict[str, int] = {}
    integers = options.quantize == "int8-dynamic"
    for name in chosen:
        kind = name.split(".")[-2]
        codes = 8 * placed.placements[name + BLOCKS].length // int(np.prod(placements[name].shape))
        bits[kind] = max(bits.get(kind, 0), codes)
    return Quantization(
        bits=dict(sorted(bits.items())),
        quantised=len(chosen),
        elements=sum(int(np.prod(placements[name].shape)) for name in chosen),
        kept=tuple(sorted({_kind(n) for n, place in placements.items() if len(place.shape) > 1 and n not in chosen})),
        dynamic=tuple(sorted({_kind(n) for n in chosen if len(placements[n].shape) == 2})) if integers else (),
        from_source=None if placed.kept_exactly is None else len(placed.kept_exactly),
        bytes_before=before,
        quality=quality,
    )


def _kind(name: str) -> str:
    """Kind of a weight; a parameter that is no module's ``weight`` goes by its own name."""
    path = name.split(".")
    return path[-2] if path[-1] == "weight" else f"{path[-2]}.{path[-1]}"
