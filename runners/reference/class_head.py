"""The head of the checkpoint's own class: what enters it, what it gives, and the rule that rebuilds its logits.

Logits of large vocabularies are not recorded; what enters the head is, and :class:`exporter.contract.head.Head`
rebuilds them from the bundle's weights. Three things keep a wrong head from hiding in the reference: the bundle's
weight must give for every row what the class's own head gives, the rule must give the class's own logits in every
column to 1e-12, and the class's whole logits at several positions of every sequence are recorded as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.head import Head, HeadRule, Stored, probes_of_width, same_rows, stored_tensors
from kvparity.runners.engines._streamed import apply_linear

__all__ = ["ClassHead", "find_head"]

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.generic]
_EXACT = 1e-12  # relative: how far rebuilt logits may be from the class's own


class _Caught(nn.Module):
    """Stands in the head's place: keeps what enters, and gives the logits of some positions only."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._run = [head]  # not a submodule
        self.positions: Sequence[int] = ()
        self.hidden: list[torch.Tensor] = []

    def forward(self, entering: torch.Tensor) -> Any:
        self.hidden.append(entering.detach())
        wanted = list(self.positions) or [entering.shape[1] - 1]
        return apply_linear(self._run[0], entering[:, wanted])


class ClassHead:
    """The head of a transformers model.

    Args:
        model: The model, in the dtype that it computes in.

    Raises:
        TraceError: The model has no head that one can take out.
    """

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        places = [
            (module, name)
            for module in model.modules()
            for name, child in module._modules.items()
            if child is self._head
        ]
        if self._head is None or not places:
            raise TraceError("the model has no output embeddings")
        self._places = places

    @contextmanager
    def caught(self) -> Iterator[_Caught]:
        """While open, passes give the logits of chosen positions, and what enters the head is kept."""
        stand_in = _Caught(self._head)
        for module, name in self._places:
            module._modules[name] = stand_in
        try:
            yield stand_in
        finally:
            for module, name in self._places:
                module._modules[name] = self._head

    def product(self, hidden: Array, dtype: torch.dtype) -> Array:
        """(positions, rows): what the head itself gives, float32 or float64."""
        with torch.no_grad():
            given = apply_linear(self._head, torch.from_numpy(np.ascontiguousarray(hidden)).to(dtype)[None])[0]
        return np.asarray((given if given.dtype == torch.float64 else given.float()).numpy())

    def products(self, width: int) -> Floats:
        """(rows, 3): every row times the fixed random vectors, and its bias; of a model in float64."""
        given = self.product(np.concatenate([probes_of_width(width).T, np.zeros((1, width))]), torch.float64)
        return np.concatenate([given[:-1] - given[-1], given[-1:]]).T.astype(np.float64)


def find_head(
    bundle: Bundle, head: ClassHead, config: Any, hidden: Floats, logits: Floats, *, strict: bool = True
) -> tuple[Head, Floats] | None:
    """The bundle's head that is the class's own, and the rule that makes its logits.

    Args:
        bundle: Its weights.
        head: The class's head, in float64.
        config: The text config: says which softcap there is.
        hidden: (positions, width): what entered the head.
        logits: (positions, vocab): what the class made of it.
        strict: Whether every row must be the class's own; a judge takes the weight with the most rows that are.

    Returns:
        The head, and what every row of the class's own gives; None where no rule known here makes these logits.

    Raises:
        TraceError: The class's head is not among the bundle's weights.
    """
    width, products = hidden.shape[1], head.products(hidden.shape[1])
    stored = stored_tensors([bundle.root / entry.path for entry in bundle.manifest.weights])
    bias = _bias(stored, products[:, -1])
    found = [Head(HeadRule(name, bias), stored, width) for name in _candidates(stored, len(products), width)]
    same = [same_rows(candidate.products(), products) for candidate in found]
    best = max(range(len(found)), key=lambda index: int(same[index].sum()), default=None)
    if best is None or not same[best].any() or (strict and not same[best].all()):
        closest = ""
        if best is not None:
            wrong = int((~same[best]).sum())
            closest = f"; in {found[best].rule.weight} {wrong:,} of {len(products):,} rows differ"
            closest += f", first {int(np.argmin(same[best]))}"
        raise TraceError(
            f"the head of the checkpoint's own class is not among the bundle's weights{closest}; export again"
        )
    rule = _rule(found[best], same[best], config, hidden, logits)
    return None if rule is None else (Head(rule, stored, width), products)


def _candidates(stored: dict[str, Stored], rows: int, width: int) -> Iterator[str]:
    """Names of weights of the head's shape, packed ones too; what is called a head first."""
    from kvparity.exporter.contract.blocks import BLOCKS

    plain = [name for name, tensor in stored.items() if tensor.shape == (rows, width)]
    packed = [name.removesuffix(BLOCKS) for name, t in stored.items() if name.endswith(BLOCKS) and t.shape[0] == rows]
    yield from sorted([*plain, *packed], key=lambda name: ("head" not in name, name))


def _bias(stored: dict[str, Stored], wanted: Floats) -> str:
    if not wanted.any():
        return ""
    for name, tensor in stored.items():
        if tensor.shape == wanted.shape and np.array_equal(tensor.array().astype(np.float64), wanted):
            return name
    raise TraceError("the bias of the checkpoint's own head is not among the bundle's weights; export again")


def _rule(head: Head, same: Any, config: Any, hidden: Floats, logits: Floats) -> HeadRule | None:
    """The rule that makes the class's own logits of the head's product, in every column whose row is the class's."""
    product, weight, bias = head.product(hidden), head.rule.weight, head.rule.bias
    if product.shape != logits.shape or not np.isfinite(logits).all():
        return None
    product, logits = product[:, same], logits[:, same]
    names = [name for name in vars(config) if "softcap" in name and "attn" not in name]
    caps = [None, *(float(getattr(config, name)) for name in names if getattr(config, name))]
    for cap in caps:
        bent = np.abs(logits / cap) < 0.9 if cap else np.ones(logits.shape, bool)
        if not bent.any():
            continue
        flat = np.arctanh(logits[bent] / cap) * cap if cap else logits[bent]
        part = product[bent]
        fitted = float((flat * part).sum() / max(float((part * part).sum()), 1e-300))
        whole = 1 / round(1 / fitted) if 1e-9 < abs(fitted) < 1 else fitted  # a divisor, mostly
        for scale in (1.0, whole, fitted):
            rule = HeadRule(weight, bias, scale, cap)
            if np.abs(rule.finish(product.copy()) - logits).max() <= _EXACT * np.abs(logits).max():
                return rule
    return None
