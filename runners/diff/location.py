"""Where a fault is: the record that ``--locate`` adds to a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Fault", "Location", "Number"]

Number = float | Literal["nan", "inf", "-inf"]  # numbers as JSON can hold them
Fault = Literal["export", "engine", "none", "unknown"]


@dataclass(frozen=True)
class Location:
    """Where a candidate leaves the reference, and whose fault it is.

    Attributes:
        fault: ``export`` (the graph in float64 is not what PyTorch computes in float64), ``engine`` (it is, and the
            engine computes something else), ``none`` (neither was found in this call), ``unknown`` (could not tell).
        runner: Candidate.
        case: Case.
        step: Call, from 0.
        graph: Graph of the call.
        position: First wrong token slot of the guilty value.
        batch: Its batch row.
        layer: Decoder layer; null outside the layers.
        layer_kind: ``full`` or ``sliding``.
        module: Path of the module that makes the value.
        probe: Name of the guilty value.
        node: ONNX node where the segment leaves the reference.
        op_type: Its operator.
        index: Index of the value shown.
        expected: Value that should be there.
        actual: Value that is.
        difference: Largest difference of the guilty value, computed from right inputs.
        limit: What would have passed.
        cause: Short name of the likely cause; empty where no pattern fits.
        why: The likely cause in a sentence.
        first_wrong: First wrong value in execution order when the graph runs as it is.
        also: Other values that are wrong although their inputs are right.
        checked: Values compared.
        reference: What the values were compared with.
        note: What a reader should know of this answer.
        sentence: All of it as a paragraph.
    """

    fault: Fault
    runner: str
    case: str
    step: int
    graph: str
    position: int | None = None
    batch: int | None = None
    layer: int | None = None
    layer_kind: str | None = None
    module: str = ""
    probe: str = ""
    node: str = ""
    op_type: str = ""
    index: tuple[int, ...] | None = None
    expected: Number | None = None
    actual: Number | None = None
    difference: Number | None = None
    limit: float | None = None
    cause: str = ""
    why: str = ""
    first_wrong: str = ""
    also: tuple[str, ...] = ()
    checked: int = 0
    reference: str = ""
    note: str = ""
    sentence: str = ""
