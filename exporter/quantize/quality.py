"""What quantisation costs: PyTorch with the weights as they were, against PyTorch with the quantised ones' values.

Conversion is judged apart, by ``compare``: a bundle's reference is PyTorch with the latter, as exact as for float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.blocks import PARTS, Blocks, dequantize, quantized_names
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.quantization import Quality
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.quantize.place import read_placed

__all__ = ["Text", "cut", "logits_of", "quality_of", "quantised_tensors", "reference_model"]

_CONTEXT = 512  # tokens of a window
_MOST = 4096  # tokens in all
_BYTES = 1 << 30  # of logits kept on disk between both runs
Ids = npt.NDArray[np.int64]
Text = tuple[str, Sequence[int], bool]


def cut(ids: Sequence[int], vocab: int, most_positions: int, bos: int | None) -> Ids:
    """Windows of equal length (windows, context), each after the begin token where the model has one."""
    context = min(_CONTEXT, most_positions, len(ids))
    body = context - (bos is not None)
    count = min(len(ids) // body, max(1, min(_MOST, _BYTES // (4 * vocab)) // context))
    windows = np.asarray(ids[: count * body], np.int64).reshape(count, body)
    return windows if bos is None else np.pad(windows, ((0, 0), (1, 0)), constant_values=bos)


def reference_model(config: Any, folder: Path, placements: Mapping[str, Placement]) -> Any:
    """Transformers' model with eager attention and the bundle's weights, in float32."""
    import torch
    from accelerate import init_empty_weights

    from kvparity.exporter.contract.text_part import build_language_model

    with init_empty_weights(include_buffers=False):
        model = build_language_model(config, "eager", experts_implementation="eager", dtype=torch.float32)
    tensors = {n: read_placed(folder, place).astype(np.float32) for n, place in placements.items()}
    model.load_state_dict({n: torch.from_numpy(array) for n, array in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def quantised_tensors(folder: Path, placements: Mapping[str, Placement]) -> Iterator[tuple[str, Blocks]]:
    """Name and blocks of every quantised weight."""
    for name in quantized_names(placements):
        places = {part: placements[name + part] for part in PARTS if name + part in placements}
        parts = {part: np.array(read_placed(folder, place)) for part, place in places.items()}
        yield name, Blocks.of(parts.get)


def logits_of(model: Any, windows: Ids) -> Iterator[npt.NDArray[np.float32]]:
    """Logits of each window, (context, vocab) float32."""
    import torch

    for window in windows:
        with torch.no_grad():
            yield model(input_ids=torch.from_numpy(window)[None], use_cache=False).logits[0].float().numpy()


def quality_of(
    model: Any,
    changed: Iterable[tuple[str, Blocks]],
    windows: Ids,
    text: str,
    options: ExportOptions,
    *,
    real: bool,
) -> Quality:
    """Run a model, change its weights, run it again.

    Args:
        model: With the weights as they were; it holds the changed ones afterwards.
        changed: Name and blocks of each weight that changes.
        windows: (windows, context) token ids.
        text: What they are, in words.
        options: Say whether linear layers with changed weights round what they are given as well.
        real: Whether they are text, so that perplexity means something.
    """
    import torch

    from kvparity.exporter.contract.rounding import round_inputs, rounding_of

    with tempfile.TemporaryFile() as file:
        for logits in logits_of(model, windows):
            logits.tofile(file)
        file.flush()
        weights = dict(model.named_parameters())
        with torch.no_grad():
            rules = []
            for name, blocks in changed:
                weight = weights[name]
                values = dequantize(blocks, weight.shape[-1], np.float32)
                weight.copy_(torch.from_numpy(values).reshape(weight.shape))
                rules.append((weight, rounding_of(blocks, weight.shape[-1], options.quantize)))
        if options.rounds_activations:
            round_inputs(model, rules)
        file.seek(0)
        sums = _Sums()
        for window, after in zip(windows, logits_of(model, windows), strict=True):
            before = np.fromfile(file, np.float32, after.size).reshape(after.shape)
            sums.add(window, before, after)
    return sums.quality(text, windows.shape[1], real=real)


class _Sums:
    """What is gathered over windows; the last position of a window predicts nothing that is known."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same = 0
        self._loss = np.zeros(2)

    def add(self, window: Ids, before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(window) - 1, 64):
            rows = slice(start, min(start + 64, len(window) - 1))
            one, other = _log_softmax(before[rows]), _log_softmax(after[rows])
            self._kl.append(np.maximum((np.exp(one) * (one - other)).sum(axis=1), 0))
            self._same += int((one.argmax(axis=1) == other.argmax(axis=1)).sum())
            following = window[rows.start + 1 : rows.stop + 1]
            self._loss -= [float(p[np.arange(len(following)), following].sum()) for p in (one, other)]

    def quality(self, text: str, context: int, *, real: bool) -> Quality:
        kl = np.concatenate(self._kl)
        before, after = np.exp(self._loss / len(kl)).tolist() if real else (None, None)
        return Quality(
            text=text,
            positions=len(kl),
            context=context,
            top1=self._same / len(kl),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            perplexity_before=before,
            perplexity_after=after,
        )


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
