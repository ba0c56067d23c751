"""Probe values from PyTorch: hooks on transformers' own model, with the names that the exporter gives.

Nothing of the exporter's wrapper is used: masks, rotary tables, caches and windows are transformers' own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.modules import decoder_stack, named_parts
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array
from kvparity.runners.engines.torch_eager import TorchSession, open_session, reference_session
from kvparity.runners.locate.fingerprint import Fingerprint, fingerprint
from kvparity.runners.reference.model import text_weight_name
from kvparity.runners.reference.origin import Origin, find_checkpoint

__all__ = ["WatchedModel"]

_WATCH = "kvparity_watch"
_NOT_NAMED = ("hidden_states", "attention_mask", "position_embeddings")


class WatchedModel:
    """Transformers' model in float64, every value at a module border kept.

    Args:
        bundle: What the model is.
        origin: Which weights it runs with; None looks for the checkpoint, and takes the bundle's where it is not found.
    """

    def __init__(self, bundle: Bundle, origin: Origin | None = None) -> None:
        self.origin = origin or find_checkpoint(bundle)
        self._session = _open(bundle, self.origin.checkpoint)
        self._kinds = {layer.index: layer.kind for layer in bundle.model.layers}
        self._seen: dict[str, Tensor] = {}
        self._hook(self._session.model)

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Probe values and outputs of one call, float64, in execution order."""
        self._seen.clear()
        outputs = self._session.run(graph, inputs)
        values = {name: np.asarray(tensor.contiguous().numpy()) for name, tensor in self._seen.items()}
        return {**values, **{name: array.astype(np.float64) for name, array in outputs.items() if name not in values}}

    def fingerprints(self, graph: GraphKind, inputs: Mapping[str, Array]) -> list[Fingerprint]:
        """A fingerprint of everything that PyTorch computes in one call."""
        with _Recording() as recording:
            self._session.run(graph, inputs)
        return recording.found

    def parameters(self) -> Mapping[str, Array]:
        """Weights and buffers by the names that they have in the text model, float32 or float64."""
        model = self._session.model
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {text_weight_name(name): tensor.detach().numpy() for name, tensor in tensors}

    def _hook(self, model: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        for path, module in named_parts(model):
            if "rotary" in path:
                module.register_forward_hook(self._tables(path), with_kwargs=True)
            elif path and not isinstance(module, nn.ModuleList):
                module.register_forward_hook(self._output(path))
        for index, layer in enumerate(decoder_stack(model)[2][: len(self._kinds)]):
            layer.register_forward_pre_hook(self._inputs(layer, f"layers.{index}"), with_kwargs=True)
        model.get_output_embeddings().register_forward_hook(self._output("lm_head"))
        AttentionInterface.register(_WATCH, self._attention)
        AttentionMaskInterface.register(_WATCH, AttentionMaskInterface()["eager"])
        model.config.get_text_config(decoder=True)._attn_implementation = _WATCH

    def _keep(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            self._seen.setdefault(name, value.detach())

    def _attention(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        index = module.layer_idx
        prefix = f"layers.{index}.self_attn"
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            self._keep(f"{prefix}.{name}", tensor)
        self._keep(f"mask.{self._kinds[index]}", mask)
        output, weights = sys.modules[type(module).__module__].eager_attention_forward(
            module, query, key, value, mask, **kwargs
        )
        self._keep(f"{prefix}.context", output)
        return output, weights

    def _output(self, path: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self._keep(path, output[0] if isinstance(output, tuple) and output else output)

        return hook

    def _tables(self, path: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            kind = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
            tables = torch.view_as_real(output).unbind(-1) if isinstance(output, Tensor) else output
            for part, table in zip(("cos", "sin"), tables, strict=True):
                self._keep(".".join([path, *kind, part]), table)

        return hook

    def _inputs(self, module: nn.Module, path: str) -> Any:
        names = list(inspect.signature(module.forward).parameters)

        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
                if name not in _NOT_NAMED:
                    self._keep(f"{path}.{name}", value)

        return hook


def _open(bundle: Bundle, checkpoint: CheckpointFiles | None) -> TorchSession:
    if checkpoint is None and bundle.manifest.foreign is None:
        return open_session(bundle, {"dtype": "float64"})
    if checkpoint is None:
        raise BundleError("PyTorch with the package's own rounded weights is not kept, so its inside is not known")
    model = reference_session(bundle, "float64", checkpoint).model
    options = bundle.options
    return TorchSession(model, bundle.model, options=options, last=options.logits == "last", dtype=torch.float64)


class _Recording(TorchDispatchMode):
    """Fingerprints of the floating-point results of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Fingerprint] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with _paused():
            for item in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(item, Tensor) and item.dtype == torch.float64 and item.numel():
                    self.found.append(fingerprint(item.numpy()))
        return result


@contextmanager
def _paused() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield
