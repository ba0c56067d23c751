"""PyTorch, the reference: transformers' own model with transformers' own cache and masks, eager attention.

As a reference it is loaded from the checkpoint (:mod:`runners.reference.model`) and shares nothing with the exporter.
As a runner among others it is loaded from the bundle's own config and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvparity.exporter.contract.blocks import PARTS, Blocks, dequantize, quantized_names
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.float64 import lifted
from kvparity.exporter.contract.modules import accepted, cache_argument, takes_own_mask
from kvparity.exporter.contract.quiet import quiet_libraries
from kvparity.exporter.contract.rounding import round_inputs, rounding_of
from kvparity.exporter.contract.spec import ExportOptions, GraphKind, ModelSpec, SlotSpec, past_name, present_name
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._rotary import compute_long, forget_length
from kvparity.runners.engines._streamed import stream_weights
from kvparity.runners.engines._transformers_cache import WatchedCache, newest_columns, to_numpy
from kvparity.runners.reference.direct import direct_files
from kvparity.runners.reference.model import empty_model, load_reference, text_weight_name

__all__ = ["INSTALL", "TorchSession", "describe", "open_session", "reference_session"]

INSTALL = "pip install 'kvparity[export]'"
TAKES = "every bundle: it runs the checkpoint"


def describe() -> RunnerInfo:
    """Version of torch and transformers."""
    need("transformers", INSTALL)
    return RunnerInfo("torch_eager", need("torch", INSTALL), {"transformers": need("transformers", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> TorchSession:
    """Load the model from the bundle's own config and weights; settings ``dtype`` (float64) and ``threads``."""
    only(options, "dtype", "threads")
    describe()
    if "threads" in options:
        torch.set_num_threads(int(options["threads"]))
    model = _load(bundle, options.get("dtype", bundle.options.dtype))
    return TorchSession(model, bundle.model, options=bundle.options, last=bundle.options.logits == "last")


def reference_session(
    bundle: Bundle, dtype: str, checkpoint: CheckpointFiles | None = None, *, streamed: bool = False
) -> TorchSession:
    """The reference that vectors are recorded from: every row of every cache, every position of the logits.

    Args:
        bundle: What the model is, and in which dtype.
        dtype: What it computes in: the bundle's, or float64, for which the bundle's dtype is widened.
        checkpoint: What it is loaded from, by transformers; None takes the bundle's own config and weights.
        streamed: Hold one module's weights at a time (:mod:`runners.engines._streamed`); the same numbers, slower. The
            checkpoint's own files are read where they hold the weights by name, the bundle's otherwise, and then the
            session's ``unread`` says why.
    """
    if streamed:
        return _streamed_session(bundle, dtype, checkpoint)
    if checkpoint is None:
        return TorchSession(_load(bundle, dtype), bundle.model)
    model = load_reference(checkpoint, bundle.options.dtype, bundle.root, lift=dtype == "float64")
    if bundle.options.quantize != "none":
        if dtype == "float64":  # what blocks stand for has more digits than float32
            model = model.double()
        _use_quantized(model, bundle, dtype)
    return TorchSession(model, bundle.model, dtype=torch.float64 if dtype == "float64" else None)


def _use_quantized(model: Any, bundle: Bundle, dtype: str) -> None:
    """Put what the bundle's quantised weights stand for in the place of the checkpoint's; everything else stays."""
    parameters = {text_weight_name(name): parameter for name, parameter in model.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    blocks: dict[str, Blocks] = {}
    state = _state(bundle, shapes, dtype, blocks)
    for name in blocks:
        parameter, values = parameters.get(name), state[name]
        if parameter is None or parameter.shape != values.shape:
            raise BundleError(f"{bundle.root}: {name} is quantised; the checkpoint has no such weight; export again")
        _check_rounding(bundle, name, parameter, values)
        parameter.data = values.to(parameter.dtype)
    _round(model, bundle, blocks, parameters, dtype)


def _round(
    model: Any, bundle: Bundle, blocks: Mapping[str, Blocks], parameters: Mapping[str, torch.Tensor], dtype: str
) -> None:
    """Let layers round what they are given where the bundle does; float64 is what rounding is measured from."""
    if bundle.options.rounds_activations and dtype != "float64":
        found = [(parameters[name], own) for name, own in blocks.items()]
        how = bundle.options.quantize
        round_inputs(model, [(weight, rounding_of(own, weight.shape[-1], how)) for weight, own in found])


def _check_rounding(bundle: Bundle, name: str, wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Four bits are off by a tenth or so; another tensor in a weight's place is off by more than its own size."""
    values = wanted.detach().double()
    size, off = float(values.norm()), float((values - found.double()).norm())
    if not off <= size / 2:
        raise BundleError(
            f"{bundle.root}: {name} is quantised to values that are not the checkpoint's: they differ by "
            f"{off / size if size else off:.2g} of its size, where rounding takes up to 0.3; export again"
        )


def _streamed_session(bundle: Bundle, dtype: str, checkpoint: CheckpointFiles | None) -> TorchSession:
    """A session that reads each module's weights when they are used."""
    own = CheckpointFiles(bundle.root)
    source, files, unread = own, _files(bundle), ""
    if checkpoint is not None:
        found, unread = direct_files(checkpoint, bundle.options.dtype)
        if not unread:
            source, files = checkpoint, found
    # Constants that the class computes itself keep their digits in float64.
    model = empty_model(source, "float32" if dtype == "float64" else dtype, text=source is own)
    model.load_state_dict(_buffers(model, files), strict=False, assign=True)
    model.tie_weights()
    if dtype == "float64":
        model = model.double()
    unset = stream_weights(model.eval(), files)
    if unset:
        raise BundleError(f"{bundle.root}: the weights lack {unset[0]} ({len(unset)} missing); export again")
    return TorchSession(model, bundle.model, dtype=getattr(torch, dtype), unread=unread)


def _load(bundle: Bundle, dtype: str) -> Any:
    """Transformers' model for the bundle's config, with the bundle's weights put in by name."""
    model = empty_model(CheckpointFiles(bundle.root), "float32", text=True)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    blocks: dict[str, Blocks] = {}
    model.load_state_dict(_state(bundle, shapes, dtype, blocks), strict=False, assign=True)
    model.tie_weights()
    model = model.to(getattr(torch, dtype)).eval()
    _round(model, bundle, blocks, dict(model.named_parameters()), dtype)
    unset = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unset:
        raise BundleError(f"{bundle.root}: the weights lack {unset[0]} ({len(unset)} missing); export again")
    return model


def _files(bundle: Bundle) -> dict[str, Path]:
    """Which file holds each tensor of the weights."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for entry in bundle.manifest.weights:
        path = bundle.root / entry.path
        with safe_open(path, framework="pt") as stream:
            files.update(dict.fromkeys(stream.keys(), path))
    return files


def _buffers(model: Any, files: Mapping[str, Path]) -> dict[str, Any]:
    """The stored buffers of a model, such as the scalars of its layers."""
    from safetensors import safe_open

    state: dict[str, Any] = {}
    for name, buffer in model.named_buffers():
        if name in files:
            with safe_open(files[name], framework="pt") as stream:
                state[name] = stream.get_tensor(name).to(buffer.dtype)
    return state


def _state(
    bundle: Bundle, shapes: Mapping[str, tuple[int, ...]], dtype: str, blocks: dict[str, Blocks]
) -> dict[str, torch.Tensor]:
    """The bundle's weights by name; quantised ones, put into ``blocks`` too, as what they stand for."""
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for entry in bundle.manifest.weights:
        state.update(load_file(bundle.root / entry.path))
    for name in quantized_names(state):
        parts = {part: state.pop(name + part).numpy() for part in PARTS if name + part in state}
        wide = np.float64 if dtype == "float64" else np.float32
        blocks[name] = Blocks.of(parts.get)
        state[name] = torch.from_numpy(dequantize(blocks[name], shapes[name][-1], wide))
        state[name] = state[name].reshape(shapes[name])
    return state


class TorchSession:
    """A transformers model behind the session protocol.

    Args:
        model: In eval mode, eager attention; moved to ``dtype`` already.
        spec: Its description.
        options: Return as many rows of sliding slots as they say, and the newest columns of convolutions; all of them
            where None.
        last: Return the logits of the last position only.
        dtype: What it computes in, where its weights lie in another one.
        unread: Why it has the bundle's weights although there is a checkpoint; empty where it has not.
    """

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        *,
        options: ExportOptions | None = None,
        last: bool = False,
        dtype: torch.dtype | None = None,
        unread: str = "",
    ) -> None:
        self.unread = unread
        self._model, self._spec, self._options, self._last = model, spec, options, last
        self._cache_argument, self._accepted = cache_argument(model), accepted(model)
        self._own_mask = takes_own_mask(model)
        compute_long(model)
        self._dtype = (
            dtype or model.get_input_embeddings().weight.dtype
        )  # single weights of half types may stay in float32
        self._float64 = self._dtype == torch.float64
        dtype = str(self._dtype).removeprefix("torch.")
        self.info = RunnerInfo(
            "torch_eager",
            torch.__version__,
            {"dtype": dtype, "threads": str(torch.get_num_threads())},
            layout="dynamic",
        )

    @property
    def model(self) -> Any:
        """Transformers' model, for those who watch it run."""
        return self._model

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; the cache is rebuilt from the pasts, so calls are independent of each other."""
        ids = torch.from_numpy(inputs["input_ids"])
        past = int(inputs["attention_mask"].shape[1]) - ids.shape[1]
        mask = inputs["attention_mask"][:, past if self._own_mask else 0 :]
        config = self._model.config.get_text_config(decoder=True)
        watched = WatchedCache(config, self._spec, inputs, past, self._dtype)
        arguments = {
            "input_ids": ids,
            "attention_mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "position_ids": torch.from_numpy(inputs["position_ids"]),
            self._cache_argument: watched.cache,
            "use_cache": True,
        }
        known = {name: value for name, value in arguments.items() if name in self._accepted}
        forget_length(self._model)
        with torch.no_grad(), lifted(self._float64), quiet_libraries():
            logits = self._model(**known).logits
        outputs = {"logits": to_numpy(logits[:, -1:] if self._last else logits)}
        for slot, part in self._spec.cache_names():
            outputs[present_name(slot.slot, part)] = self._present(slot, part, inputs, watched.taken(slot, part), past)
        return outputs

    def _present(self, slot: SlotSpec, part: str, inputs: Mapping[str, Array], new: Array, past: int) -> Array:
        """What a part holds after the call: past and new rows or columns, as many as it keeps; a state as it is."""
        if part not in ("key", "value", "conv_state"):
            return new
        if past:
            new = np.concatenate([inputs[past_name(slot.slot, part)].astype(new.dtype), new], axis=2)
        if part == "conv_state":
            return newest_columns(new, slot.shape(part, 1, 0)[-1]) if self._options else new
        kept = self._options.kept_rows(slot, new.shape[2]) if self._options else new.shape[2]
        return new[:, :, new.shape[2] - kept :]

    def close(self) -> None:
        """Drop the model."""
        self._model = None
