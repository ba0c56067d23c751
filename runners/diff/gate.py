"""One call's outputs against what they must be: every expected output, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvparity.runners.diff.tensor import Array, Expectation, TensorDiff, compare

__all__ = ["compare_outputs"]


def compare_outputs(outputs: Mapping[str, Array], expectations: Sequence[Expectation]) -> list[TensorDiff]:
    """Compare one call.

    Args:
        outputs: What the candidate returned, by name.
        expectations: Every output that it must return.

    Returns:
        One difference per expected output, in the order given, then one per output that nobody expects.

    Raises:
        ValueError: Nothing is expected, so nothing would be compared.
    """
    if not expectations:
        raise ValueError("nothing to compare: no output is expected of this call")
    diffs = [compare(_array(outputs.get(expectation.name)), expectation) for expectation in expectations]
    known = {expectation.name for expectation in expectations}
    return diffs + [_extra(name, outputs[name]) for name in sorted(outputs) if name not in known]


def _array(value: Array | None) -> Array | None:
    """Engines return scalars and lists now and then; an array of another dtype is what they are judged as."""
    return None if value is None else np.asarray(value)


def _extra(name: str, value: npt.NDArray[np.generic]) -> TensorDiff:
    array = np.asarray(value)
    detail = f"extra output; the contract has none of this name (found {array.dtype.name} {list(array.shape)})"
    return TensorDiff(name, 0.0, "extra", detail)
