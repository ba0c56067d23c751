"""The weights audit: every tensor of a checkpoint against what a foreign graph stores, matched by content.

Names are of no use: exporters rename, transpose, join, scale and quantise. A weight is found where some stored tensor
holds its numbers as they are, transposed, joined with others along its rows, with a factor or a one added.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.runners.adopt.stored import Stored, scalar_constants, stored_weights
from kvparity.runners.diff.audit import Audit, ConstantRow, WeightRow, WeightState

__all__ = ["audit_package", "audit_weights"]

Array = npt.NDArray[Any]
_ALIKE = 0.4  # relative distance of a sample below which two tensors are the same weight, rounded to 4 bits at worst
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_SAMPLE = 256
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True)
class _Match:
    """A stored tensor, or a run of its rows, that holds a weight."""

    weight: str
    stored: Stored
    how: str
    error: float
    relative: float
    note: str


def audit_weights(
    weights: Mapping[str, Array],
    stored: Sequence[Stored],
    scalars: Mapping[str, float],
    numbers: Mapping[str, float],
) -> Audit:
    """Match every weight of a checkpoint with what a graph stores.

    Args:
        weights: The checkpoint's tensors as transformers loads them, tied ones once.
        stored: The graph's (:func:`runners.adopt.stored.stored_weights`), both graphs' where there are two.
        scalars: The graph's single numbers.
        numbers: The model's own, such as the scale of embeddings, by where they stand in it.
    """
    matches: dict[str, list[_Match]] = {}
    unknown: list[str] = []
    smallest = min((array.size for array in weights.values() if array.ndim > 1), default=2)
    for item in stored:
        found = list(_matches(item, weights))
        for match in found:
            matches.setdefault(match.weight, []).append(match)
        if not found and len(item.shape) > 1 and int(np.prod(item.shape)) >= smallest:
            unknown.append(item.name)
    rows = [_row(name, array, matches.get(name, [])) for name, array in weights.items()]
    return Audit(_in_order(rows, matches), tuple(unknown), tuple(_rounded(scalars, numbers)))


def _matches(item: Stored, weights: Mapping[str, Array]) -> Iterator[_Match]:
    for name, how, view in _found(item, weights):
        yield _compared(name, item, how, view, weights[name])


def _held(item: Stored, weights: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    yield from ((name, view) for name, _, view in _found(item, weights))


def _found(item: Stored, weights: Mapping[str, Array]) -> Iterator[tuple[str, str, Array]]:
    """Weights that a stored tensor holds: name, how, and its values in the weight's shape."""
    values = item.values()
    size = values.size
    best: tuple[float, str, str, Array] | None = None
    for name, weight in weights.items():
        if weight.size != size:
            continue
        for how, view in _views(values, weight):
            distance = _distance(view, weight)
            distance += 1e-9 * (not _alike_names(item.name, name))
            if best is None or distance < best[0]:
                best = (distance, name, how, view)
    if best is not None and best[0] <= _ALIKE:
        yield best[1:]
        return
    if values.ndim == 2:
        yield from _joined(item, values, weights)


def _views(values: Array, weight: Array) -> Iterator[tuple[str, Array]]:
    """The stored tensor in the shape of a weight, in every way that exporters use."""
    if values.shape == weight.shape:
        yield "as it is", values
        if values.ndim <= 1:
            yield "plus 1", values - 1
    elif values.ndim == weight.ndim and values.shape == (*weight.shape[:-2], *weight.shape[:-3:-1]):
        yield "transposed", values.swapaxes(-1, -2)
    else:
        yield "reshaped", values.reshape(weight.shape)
    if values.ndim == weight.ndim == 2 and values.shape == weight.shape[::-1] == weight.shape:
        yield "transposed", values.T
    factor = _factor(values, weight)
    if factor is not None:
        yield f"times {factor:.6g}", values / factor


def _factor(values: Array, weight: Array) -> float | None:
    """The factor between two tensors of the same shape; None where there is none, or it is 1."""
    if values.shape != weight.shape or values.ndim < 2:
        return None
    left, right = _sample(values), _sample(weight)
    norm = float(right @ right)
    factor = float(left @ right) / norm if norm else 0.0
    if abs(factor) < 1e-6 or abs(factor - 1) < 1e-3:
        return None
    residual = left - factor * right
    return factor if float(residual @ residual) <= 1e-6 * float(left @ left) else None


def _sample(array: Array) -> npt.NDArray[np.float64]:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE)][: 2 * _SAMPLE].astype(np.float64)


def _distance(left: Array, right: Array) -> float:
    a, b = _sample(left), _sample(right)
    scale = float(b @ b)
    difference = a - b
    if scale == 0:
        return 0.0 if not a.any() else float("inf")
    return float(np.sqrt(float(difference @ difference) / scale))


def _alike_names(stored: str, weight: str) -> bool:
    return weight in stored or stored in weight or weight.removeprefix("model.") in stored


def _joined(item: Stored, values: Array, weights: Mapping[str, Array]) -> Iterator[tuple[str, str, Array]]:
    """Weights whose rows lie one behind the other in a stored tensor, as packed projections do."""
    for turned in (False, True):
        view = values.T if turned else values
        found: list[tuple[str, str, Array]] = []
        start = 0
        while start < len(view):
            near = [
                (_distance(view[start], weight[0]), name)
                for name, weight in weights.items()
                if weight.ndim == 2 and weight.shape[1] == view.shape[1] and len(weight) <= len(view) - start
            ]
            distance, name = min(near, default=(1.0, ""))
            if distance > _ALIKE:
                break
            weight = weights[name]
            how = f"{'columns' if turned else 'rows'} {start} to {start + len(weight) - 1} of {item.name}"
            found.append((name, how, view[start : start + len(weight)]))
            start += len(weight)
        if found and start == len(view):
            yield from found
            return


def _compared(name: str, item: Stored, how: str, view: Array, weight: Array) -> _Match:
    """Largest differences of a stored tensor from a weight, and the rows that are worse than its coding explains."""
    rows = weight.shape[0] if weight.ndim > 1 else 1
    bound = _EPSILON.get(item.coding, 0.0)
    worst, relative, bad, zeros = 0.0, 0.0, [], []
    left, right = view.reshape(rows, -1), weight.reshape(rows, -1)
    for start in range(0, rows, 1024):
        a, b = (part[start : start + 1024].astype(np.float64) for part in (left, right))
        difference = np.abs(a - b)
        scale = np.abs(b).max(axis=1)
        each = difference.max(axis=1)
        allowed = bound * np.maximum(scale, 1e-30) if not item.step else 2 * item.step + 0 * scale
        worst = max(worst, float(each.max(initial=0)))
        relative = max(relative, float((each / np.maximum(scale, 1e-30)).max(initial=0)))
        zero = ~a.any(axis=1) & b.any(axis=1)
        zeros += (start + np.nonzero(zero)[0]).tolist()
        bad += (start + np.nonzero(~(each <= allowed))[0]).tolist()
    note = ""
    if zeros:
        note = f"row {zeros[0]} is zero" + (f", and {len(zeros) - 1} more" if len(zeros) > 1 else "")
    elif bad:
        note = f"row {bad[0]} differs" + (f", and {len(bad) - 1} more of {rows}" if len(bad) > 1 else f" of {rows}")
    return _Match(name, item, how, worst, relative, note)


def _row(name: str, weight: Array, matches: Sequence[_Match]) -> WeightRow:
    if not matches:
        return WeightRow(name, "missing", note="no stored tensor holds it")
    worst = max(matches, key=lambda match: (bool(match.note), match.error))
    state: WeightState = "differs" if worst.note else "exact" if worst.error == 0 else "rounded"
    stored = tuple(dict.fromkeys(match.stored.name for match in matches))
    return WeightRow(name, state, worst.how, worst.stored.coding, stored, worst.error, worst.note)


def _in_order(rows: list[WeightRow], matches: Mapping[str, Sequence[_Match]]) -> tuple[WeightRow, ...]:
    """Layers must be read in order: a weight that the graph reads in another layer's place is said to be there."""
    roles: dict[str, list[tuple[int, int, str]]] = {}
    for row in rows:
        layer = _LAYER.search(row.name)
        if layer and row.state != "missing" and matches[row.name][0].stored.node >= 0:
            role = _LAYER.sub(".*.", row.name)
            roles.setdefault(role, []).append((int(layer[1]), matches[row.name][0].stored.node, row.name))
    misplaced: dict[str, str] = {}
    for entries in roles.values():
        by_layer, by_node = sorted(entries), sorted(entries, key=lambda entry: entry[1])
        if len({node for _, node, _ in entries}) < len(entries):
            continue
        for here, there in zip(by_layer, by_node, strict=True):
            if here != there:
                misplaced[there[2]] = f"stands in layer {here[0]}'s place"
    return tuple(
        row
        if row.name not in misplaced
        else WeightRow(**{**vars(row), "state": "differs", "note": misplaced[row.name]})
        for row in rows
    )


def _rounded(scalars: Mapping[str, float], numbers: Mapping[str, float]) -> Iterator[ConstantRow]:
    """Numbers of a graph that are close to one of the model's, and not the same in float32."""
    for value, found in scalars.items():
        near = [(abs(found - number) / abs(number), name) for name, number in numbers.items() if number]
        distance, name = min(near, default=(1.0, ""))
        if 3e-7 < distance < 5e-3:
            yield ConstantRow(name, numbers[name], found, value)


def audit_package(graphs: Sequence[Path], model: Any) -> Audit:
    """Audit the graphs of a package.

    Args:
        graphs: Its ``.onnx`` files.
        model: The checkpoint as transformers loads it (a ``torch.nn.Module``).
    """
    weights = {name: parameter.detach().float().numpy() for name, parameter in model.named_parameters()}
    numbers = {f"{path}.{key}".lstrip("."): value for path, key, value in _model_numbers(model)}
    stored = [item for path in graphs for item in stored_weights(path)]
    scalars = {name: value for path in graphs for name, value in scalar_constants(path).items()}
    return audit_weights(weights, stored, scalars, numbers)


def stored_values(graphs: Sequence[Path], model: Any, names: Collection[str]) -> dict[str, Array]:
    """What a package stores of some weights, in the checkpoint's shapes, float32."""
    weights = {name: parameter.detach().float().numpy() for name, parameter in model.named_parameters()}
    found: dict[str, Array] = {}
    for item in (item for path in graphs for item in stored_weights(path)):
        for name, view in _held(item, weights):
            if name in names:
                found.setdefault(name, np.asarray(view, np.float32))
    return found


def _model_numbers(model: Any) -> Iterator[tuple[str, str, float]]:
    """Single numbers that a model computes with: factors on its modules, and buffers of one element."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and value not in (0.0, 1.0):
                yield path, key, value
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.numel() == 1 and buffer.is_floating_point():
                yield path, key, float(buffer)
