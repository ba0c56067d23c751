"""Small configurations of models that keep states beside or instead of keys and values, and a plain replay of them.

Nothing of the runners is used here: onnxruntime runs the graphs, transformers computes what they should give.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["STATES", "plain_errors"]

C, F, L = "conv", "full_attention", "linear_attention"
_DELTA = {
    "layer_types": [L, F, L],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 256,
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_conv": 4}
_MAMBA2 |= {"mamba_expand": 2, "mamba_chunk_size": 16, "max_position_embeddings": 256}
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("lfm2", {"layer_types": [C, F, C], "conv_L_cache": 3, "max_position_embeddings": 256}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": [C, F, C], "conv_L_cache": 4, "num_dense_layers": 1}),
    "lfm3": ("lfm3", {"layer_types": [C, F, C]}),
    "qwen3_next": ("qwen3_next", _DELTA),
    "qwen3_next, YaRN": (
        "qwen3_next",
        {
            **_DELTA,
            "rope_parameters": {
                "rope_type": "yarn",
                **{"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "qwen3_5": ("qwen3_5_text", _DELTA),
    "qwen3_5_moe": ("qwen3_5_moe_text", _DELTA),
    "olmo_hybrid": ("olmo_hybrid", {**_DELTA, "linear_num_value_heads": 2}),
    "lara_mini": ("lara_mini", _DELTA),
    "kimi_linear": (
        "kimi_linear",
        {"num_key_value_heads": 4, "layer_types": [L, F, L], "linear_num_heads": 2, "linear_head_dim": 8},
    ),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8, "chunk_size": 16}),
    "bamba": ("bamba", {**_MAMBA2, "attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_MAMBA2, "layer_types": [L, F, L], "shared_intermediate_size": 24, "position_embedding_type": "rope"},
    ),
    "falcon_h1": ("falcon_h1", {**_MAMBA2, "mamba_d_ssm": 64}),
    "nemotron_h": (
        "nemotron_h",
        {
            **{"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 16},
            **{"layers_block_type": ["mamba", "mlp", "attention", "mamba"], "max_position_embeddings": 256},
            "num_hidden_layers": 4,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **{"n_mamba_heads": 4, "mamba_ngroups": 2, "mamba_d_state": 8, "mamba_expand": 2, "chunk_size": 16},
            **{"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
            **{"use_mem_rope": True, "adapter_rank": 4, "num_mem_blocks": 1, "max_position_embeddings": 256},
        },
    ),
    "zamba": (
        "zamba",
        {
            **{"n_mamba_heads": 2, "mamba_d_state": 8, "mamba_expand": 2, "mamba_dt_rank": 4, "num_hidden_layers": 6},
            "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
        },
    ),
    "mamba": ("mamba", {"state_size": 8, "time_step_rank": 4}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8, "time_step_rank": 4}),
    "jamba": (
        "jamba",
        {
            **{"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 4},
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        },
    ),
}
SINGLE_STEPS = (70, *[1] * 80)  # what transformers computes rightly of Mamba-1
CALLS = (70, 1, 1, 7, 64, 1, 6)  # 150 tokens: past every edge of a chunk of 64 and of a convolution
PADS = (0, 5, 0, 1, 0, 69, 0, 3, 0, 2, 0, 40, 0, 4, 0, 64)  # of the rows of a batch, each shorter than the first call

Array = npt.NDArray[np.generic]


class Errors(NamedTuple):
    """The largest difference of any logit, and the root of the mean square of all."""

    largest: float
    rms: float


def plain_errors(checkpoint: Path, bundle: Path, calls: Sequence[int] = CALLS) -> tuple[Errors, Errors]:
    """Errors of the graphs in onnxruntime and of PyTorch in float32, both against PyTorch in float64.

    A batch of rows, half of them padded on the left, goes through prefill, chunks and steps; logits of live tokens
    count. The largest error lies at one or two tokens where the model amplifies rounding, by luck more or less: hence
    many rows, and PyTorch's error is the larger of two, in these calls and in one.

    Args:
        checkpoint: What ``from_pretrained`` loads.
        bundle: Folder of ``prefill.onnx`` and ``decode.onnx``.
        calls: Tokens of each call.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()
    total = sum(calls)
    ids = np.random.default_rng(1).integers(3, model.config.vocab_size, (len(PADS), total))
    mask = (np.arange(total) >= np.asarray(PADS)[:, None]).astype(np.int64)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    cuts = (tuple(calls), (total,))
    single = [_in_pytorch(model, ids, mask, positions, cut) for cut in cuts]
    with _wide():
        double = [_in_pytorch(model.double(), ids, mask, positions, cut) for cut in cuts]
    graphs = _in_onnxruntime(bundle, ids, mask, positions, calls)
    live = mask == 1
    own = [_errors(one - wide, live) for one, wide in zip(single, double, strict=True)]
    return _errors(graphs - double[0], live), Errors(*(max(pair) for pair in zip(*own, strict=True)))


def _errors(difference: npt.NDArray[np.float64], live: npt.NDArray[np.bool_]) -> Errors:
    picked = difference[live]
    return Errors(float(np.abs(picked).max()), float(np.sqrt(np.square(picked).mean())))


def _in_pytorch(model: Any, ids: Array, mask: Array, positions: Array, calls: Sequence[int]) -> npt.NDArray[np.float64]:
    import torch
    from transformers import DynamicCache

    def run(start: int, stop: int, cache: Any) -> Array:
        first = start if own_mask else 0  # Mamba's code takes the mask of the call's own tokens, as generate() gives it
        given = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, first:stop]}
        if takes_positions:
            given["position_ids"] = positions[:, start:stop]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
        with torch.no_grad():
            return np.asarray(model(**tensors, cache=cache, use_cache=True).logits.numpy())

    own_mask = model.config.model_type in ("mamba", "falcon_mamba")
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    cache = DynamicCache(config=model.config)
    return _joined(lambda start, stop: run(start, stop, cache), calls)


def _in_onnxruntime(
    bundle: Path, ids: Array, mask: Array, positions: Array, calls: Sequence[int]
) -> npt.NDArray[np.float64]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(str(bundle / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        for name in ("prefill", "decode")
    }
    past: dict[str, Array] = {}

    def run(start: int, stop: int) -> Array:
        session = sessions["decode" if start else "prefill"]
        given = {
            "input_ids": ids[:, start:stop],
            "attention_mask": mask[:, :stop],
            "position_ids": positions[:, start:stop],
        }
        wanted = {port.name for port in session.get_inputs()}
        names = [port.name for port in session.get_outputs()]
        feeds = {name: array for name, array in {**given, **past}.items() if name in wanted}
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        past.update({name.replace("present", "past_key_values"): value for name, value in outputs.items()})
        return np.asarray(outputs["logits"])

    return _joined(run, calls)


def _joined(run: Callable[[int, int], Array], calls: Sequence[int]) -> npt.NDArray[np.float64]:
    ends = np.cumsum(calls)
    parts = [run(int(stop - count), int(stop)) for stop, count in zip(ends, calls, strict=True)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _wide() -> Any:
    """Casts to float32 become casts to float64 while PyTorch computes in float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                return args[0].double()

            def widen(value: Any) -> Any:
                return torch.float64 if value is torch.float32 else value

            return func(*map(widen, args), **{key: widen(value) for key, value in (kwargs or {}).items()})

    return Wide()
