"""What the cache of a model holds, seen by running it once on fake tensors; for models whose modules do not say it.

Multi-head latent attention, for one, has no key projection of a head's size: only the call to the cache tells.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.modules import accepted, cache_argument
from kvparity.exporter.contract.quiet import quiet_libraries
from kvparity.exporter.contract.spec import StateSpec

__all__ = ["Observed", "observe_cache"]

_CHUNK = 64  # tokens of a chunk where a module has no size of its own
_CHUNKED, _STEPPED = "mamba2_chunk_scan", "mamba_selective_scan"  # functions of files with Mamba-2 and Mamba-1


class Observed:
    """A cache that holds nothing and notes what it is given.

    Args:
        ssm: The function that computes the model's recurrences where they are state-space models; empty elsewhere.

    Attributes:
        rows: (kv_heads, head_dim, value_head_dim) of every layer that writes keys and values.
        states: Parts of fixed size of every layer that keeps some.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()
    layers: tuple[Any, ...] = ()

    def __init__(self, *, ssm: str) -> None:
        self._ssm = ssm
        self.rows: dict[int, tuple[int, int, int]] = {}
        self.states: dict[int, tuple[StateSpec, ...]] = {}

    def update(self, key: Any, value: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keys and values."""
        self.rows[layer_idx] = (int(key.shape[1]), int(key.shape[3]), int(value.shape[3]))
        return key, value

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing came before."""

    get_recurrent_state = get_conv_state

    def update_conv_state(
        self, new: Any, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int, **_: Any
    ) -> Any:
        """Columns of a convolution."""
        self._note(layer_idx, StateSpec("conv_state", (int(new.shape[1]), conv_kernel_size - 1)))
        return new

    def update_recurrent_state(self, state: Any, layer_idx: int, **_: Any) -> Any:
        """The state of a recurrence; Mamba-2's is turned to the contract's order."""
        shape = tuple(int(size) for size in state.shape[1:])
        if not self._ssm:
            self._note(layer_idx, StateSpec("recurrent_state", shape))
        else:
            self._note(layer_idx, StateSpec("ssm_state", (shape[0], *shape[:0:-1]) if self._ssm == _CHUNKED else shape))
        return state

    def note_chunks(self, model: Any) -> None:
        """Say of each recurrence in which chunks transformers computes it: a size of its module, or the function's.

        None for Mamba-1, which it computes token by token.
        """
        if self._ssm == _STEPPED:
            return
        sizes = {
            x.layer_idx: x.chunk_size for x in model.modules() if hasattr(x, "layer_idx") and hasattr(x, "chunk_size")
        }
        for layer, states in self.states.items():
            chunk = int(sizes.get(layer) or _CHUNK)
            self.states[layer] = tuple(
                state if state.part == "conv_state" else replace(state, chunk=chunk) for state in states
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing came before."""
        return 0

    def _note(self, layer_idx: int, state: StateSpec) -> None:
        self.states[layer_idx] = (*self.states.get(layer_idx, ()), state)


def observe_cache(model: Any) -> Observed:
    """Run a model once on fake tensors and see what its layers give to the cache.

    Args:
        model: A meta model; left as it is.

    Raises:
        ExportError: The model cannot be run with keys, values and known states alone.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from kvparity.exporter.model.experts import choose_experts
    from kvparity.exporter.model.mask_functions import calls_interface, mask_functions
    from kvparity.exporter.model.states import modelling_files

    files = modelling_files(model)
    named = (name for name in (_CHUNKED, _STEPPED) if any(hasattr(file, name) for file in files))
    cache = Observed(ssm=next(named, ""))
    clone = copy.deepcopy(model)
    choose_experts(clone, "prefill")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), quiet_libraries():
            _fill(clone)
            tokens = torch.zeros(1, 3, dtype=torch.int64)
            arguments = {"position_ids": tokens, cache_argument(clone): cache, "use_cache": True}
            known = {name: value for name, value in arguments.items() if name in accepted(clone)}
            if calls_interface(clone):
                clone(input_ids=tokens, **known)
            else:
                with mask_functions(clone, _no_mask):
                    clone(input_ids=tokens, attention_mask=torch.ones_like(tokens), **known)
    except Exception as error:
        raise ExportError(f"{model.config.model_type}: {_why_not(error, cache)}") from error
    cache.note_chunks(clone)
    return cache


def _why_not(error: Exception, cache: Observed) -> str:
    """Why a model cannot be observed, in its own terms."""
    if type(error).__name__ in ("DynamicOutputShapeException", "DataDependentOutputException"):
        return (
            "its code reads values of tensors while it runs (nonzero, .item()), as experts that loop over the tokens "
            "they were given do; what it computes then depends on the tokens of the trace, so no graph of it is right"
        )
    if isinstance(error, AttributeError) and error.obj is cache:
        return f"its layers ask the cache for {error.name!r}, which is more than keys, values and known states"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"three tokens and an empty cache do not run through it: {lines[0][:200] if lines else 'no reason given'}"


def _no_mask(_kind: str) -> Any:
    import torch

    return torch.zeros(1, 1, 3, 3)


def _fill(model: Any) -> None:
    """Fake tensors on the CPU in place of every parameter and buffer."""
    import torch

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
