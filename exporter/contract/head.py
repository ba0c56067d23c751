"""The language-model head in float64: logits from what enters it, so that large vocabularies need not be recorded.

``logits = softcap(scale x (hidden @ weight.T + bias))``, with ``softcap(x) = c tanh(x / c)`` where there is one. The
weight is the bundle's own file, which the graphs read too, so a wrong row of it would make the same wrong logits on
both sides. That is why an export keeps what the checkpoint's own head gives for two fixed random vectors, row by row:
a row of the file that gives something else is not the checkpoint's, and its logits are then NaN, which nothing matches.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.blocks import BLOCKS, Blocks, dequantize
from kvparity.exporter.contract.errors import BundleError

__all__ = ["CHECKED", "Head", "HeadRule", "Stored", "probes_of_width", "same_rows", "stored_tensors"]

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.generic]
CHECKED = 2  # random vectors that every row of the head is multiplied with
_SAME = 1e-11  # relative: what the order of a sum in float64 may change in a product of a row
_AT_ONCE = 4096  # rows of the weight in float64 at a time
_BLOCK = 1 << 25  # logits rebuilt together
_KEPT = 3  # of these blocks


@dataclass(frozen=True)
class HeadRule:
    """How logits come from the hidden state that enters the head.

    Attributes:
        weight: Name of the (vocab, hidden) weight in the bundle's weights.
        bias: Name of its bias there; empty without one.
        scale: Factor on the product.
        softcap: Limit of the logits; None without one.
    """

    weight: str
    bias: str = ""
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, product: Any) -> Any:
        """What becomes of the head's product, in place."""
        if self.scale != 1.0:
            product *= self.scale
        if self.softcap is not None:
            product /= self.softcap
            np.tanh(product, out=product)
            product *= self.softcap
        return product


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, where it lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def array(self) -> Array:
        """The tensor, mapped."""
        if self.dtype == "BF16":
            import ml_dtypes

            kind: Any = ml_dtypes.bfloat16
        else:
            kind = _KINDS[self.dtype]
        return np.memmap(self.path, kind, "r", self.offset, self.shape)


_KINDS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "U8": np.uint8, "I8": np.int8}
_KINDS |= {"I64": np.int64, "I32": np.int32, "BOOL": np.bool_}


def stored_tensors(paths: list[Path]) -> dict[str, Stored]:
    """Every tensor of some safetensors files by name.

    Raises:
        BundleError: A file is not one.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin = 8 + size + int(entry["data_offsets"][0])
                    found[name] = Stored(path, entry["dtype"], tuple(entry["shape"]), begin)
        except (OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise BundleError(f"{path.name}: not a readable safetensors file; export again") from error
    return found


def probes_of_width(width: int) -> Floats:
    """The fixed random vectors that rows of a head are multiplied with: (width, :data:`CHECKED`)."""
    return np.random.default_rng(14).standard_normal((width, CHECKED))


def same_rows(products: Floats, recorded: Floats) -> npt.NDArray[np.bool_]:
    """(rows,): whether each row gave what was recorded, but for the order of float64 sums."""
    size = np.abs(recorded)
    close = np.abs(products - recorded) <= _SAME * (size + size.mean(axis=0))
    return np.asarray(close.all(axis=1))


class Head:
    """A head whose rows are read where they lie.

    Args:
        rule: How logits are made.
        stored: The bundle's tensors by name.
        width: Columns of the weight, which packed blocks do not say.

    Raises:
        BundleError: The weights lack the head.
    """

    def __init__(self, rule: HeadRule, stored: Mapping[str, Stored], width: int) -> None:
        self.rule, self.width = rule, width
        self._rows = _Rows(rule.weight, stored, width)
        self.size = self._rows.size
        self._bias: Floats | None = None
        if rule.bias:
            if rule.bias not in stored:
                raise BundleError(f"the weights lack {rule.bias}, which the head needs; export again")
            self._bias = stored[rule.bias].array().astype(np.float64)
        self.wrong: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._blocks: OrderedDict[tuple[int, int], tuple[object, Floats]] = OrderedDict()

    def products(self) -> Floats:
        """(rows, :data:`CHECKED` + 1): every row times the fixed random vectors, and its bias."""
        probes = probes_of_width(self.width)
        parts = [
            self._rows(start, min(start + _AT_ONCE, self.size)) @ probes for start in range(0, self.size, _AT_ONCE)
        ]
        bias = np.zeros(self.size) if self._bias is None else self._bias
        return np.concatenate([np.concatenate(parts), bias[:, None]], axis=1)

    def check(self, recorded: Floats) -> None:
        """Compare with the checkpoint's own head; logits of rows that differ are NaN from now on."""
        if recorded.shape != (self.size, CHECKED + 1):
            raise BundleError(f"{self.rule.weight} has {self.size} rows, the checkpoint's head {len(recorded)}")
        self.wrong = np.flatnonzero(~same_rows(self.products(), recorded))

    def product(self, hidden: Floats) -> Floats:
        """(positions, rows) float64: the head's product and bias, before scale and softcap."""
        logits = np.empty((len(hidden), self.size))
        for start in range(0, self.size, _AT_ONCE):
            stop = min(start + _AT_ONCE, self.size)
            logits[:, start:stop] = hidden @ self._rows(start, stop).T
        if self._bias is not None:
            logits += self._bias
        return logits

    def logits(self, hidden: Floats) -> Floats:
        """(positions, vocab) float64 from (positions, hidden) float64; NaN in the columns of wrong rows."""
        logits = self.rule.finish(self.product(hidden))
        logits[:, self.wrong] = np.nan
        return logits

    @property
    def positions(self) -> int:
        """Positions of a block."""
        return max(_BLOCK // self.size, 1)

    def block(self, owner: object, index: int, hidden: Callable[[int, int], Floats]) -> Floats:
        """The logits of one block of positions; the last few blocks are kept.

        Args:
            owner: Whose positions they are.
            index: Number of the block.
            hidden: Gives the hidden states of positions from ``start`` to ``stop``.
        """
        key = (id(owner), index)
        if key not in self._blocks:
            span = index * self.positions, (index + 1) * self.positions
            self._blocks[key] = (owner, self.logits(hidden(*span)))
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key][1]


class _Rows:
    """Rows of a weight in float64, quantised or not."""

    def __init__(self, name: str, stored: Mapping[str, Stored], width: int) -> None:
        self._width = width
        if name in stored:
            self._plain: Array | None = stored[name].array()
            self.size = int(self._plain.shape[0])
        elif name + BLOCKS in stored:
            self._plain = None
            self._blocks = Blocks.of(lambda part: stored[name + part].array() if name + part in stored else None)
            self.size = int(stored[name + BLOCKS].shape[0])
        else:
            raise BundleError(f"the weights lack {name}, which the reference's logits are rebuilt with; export again")

    def __call__(self, start: int, stop: int) -> Floats:
        if self._plain is not None:
            return self._plain[start:stop].astype(np.float64)
        return dequantize(self._blocks[start:stop], self._width)
