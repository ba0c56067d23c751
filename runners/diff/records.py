"""What a report consists of: frozen records, from which the JSON Schema in docs/report.schema.json is made.

Numbers that are not finite are written as the strings ``nan``, ``inf`` and ``-inf``, because JSON has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from kvparity.exporter.contract.quantization import Quantization
from kvparity.runners.diff.audit import PackageRecord
from kvparity.runners.diff.budget import Budget
from kvparity.runners.diff.location import Location, Number
from kvparity.runners.diff.tensor import Reason

__all__ = [
    "SCHEMA_VERSION",
    "BundleRecord",
    "CaseRecord",
    "Covers",
    "Curve",
    "Divergence",
    "Number",
    "QuestionRecord",
    "ReportRecord",
    "Result",
    "RunnerRecord",
    "TensorRecord",
    "TokenChoice",
    "TopDifference",
    "Verdict",
    "number",
    "worst_verdict",
]

SCHEMA_VERSION = 2
Verdict = Literal["match", "mismatch", "error"]
Question = Literal["gate", "exact", "self", "recording", "bundle"]


def number(value: float) -> Number:
    """A float as JSON can hold it."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def worst_verdict(verdicts: list[Verdict]) -> Verdict:
    """One verdict for many: a mismatch is certain, then errors; nothing at all is an error."""
    if "mismatch" in verdicts:
        return "mismatch"
    return "error" if "error" in verdicts or not verdicts else "match"


@dataclass(frozen=True)
class Result:
    """One output of one call of one case on one runner.

    Attributes:
        question: ``gate`` (against PyTorch), ``exact`` (the graph in float64), ``self`` (identities), ``recording``
            or ``bundle`` (against what another engine recorded, or another bundle of the model).
        runner: Runner, with its settings.
        case: Case, or the identity's name.
        step: Call, from 0.
        tensor: Output name.
        layer: Layer that writes this cache; null for logits.
        verdict: match or mismatch.
        reason: Why it is a mismatch.
        detail: The fault in words where it is not a value.
        max_abs_diff: Largest difference; null where values could not be compared.
        worst_position: Token slot of the largest difference.
        worst_index: Index of it in the tensor.
        expected: Reference value there.
        actual: Candidate value there.
        first_bad_position: First token slot over the limit.
        limit: Largest difference that passes.
        needs_tol: Smallest tolerance that would pass; null where none would.
        budget: Largest error against float64 over PyTorch's own; null where float64 is not known.
    """

    question: Question
    runner: str
    case: str
    step: int
    tensor: str
    layer: int | None
    verdict: Verdict
    reason: Reason | None
    detail: str
    max_abs_diff: Number | None
    worst_position: int | None
    worst_index: tuple[int, ...] | None
    expected: Number | None
    actual: Number | None
    first_bad_position: int | None
    limit: float
    needs_tol: Number | None
    budget: Number | None


@dataclass(frozen=True)
class Divergence:
    """Where a candidate first leaves the reference: earliest call, then lowest slot, then lowest layer.

    Attributes:
        graph: Graph of the call.
        tokens: Tokens of the call.
        position: Token slot; null for faults of structure.
        batch: Batch row.
        layer_kind: ``full`` or ``sliding``, window with it, null for logits.
        also: Earliest layer whose cache is wrong in the same call, where the divergence itself is in the logits.
        sentence: All of it in words.
    """

    question: Question
    runner: str
    case: str
    step: int
    graph: str
    tokens: int
    tensor: str
    layer: int | None
    layer_kind: str | None
    window: int | None
    reason: Reason
    position: int | None
    batch: int | None
    index: tuple[int, ...] | None
    expected: Number | None
    actual: Number | None
    difference: Number | None
    limit: float
    also: int | None
    sentence: str


@dataclass(frozen=True)
class TokenChoice:
    """One token and how both sides rate it; ``text`` is empty where nobody looked it up."""

    token: int
    expected: Number
    actual: Number
    text: str = ""


@dataclass(frozen=True)
class TopDifference:
    """A position where candidate and reference choose different tokens.

    Attributes:
        gap: How much likelier the reference finds its own choice than the candidate's, in logits.
        near_tie: The gap is at most twice the limit, so that errors within the limit can flip the choice.
        choices: The likeliest tokens of either side, best first as the reference sees them.
    """

    step: int
    batch: int
    position: int
    gap: float
    near_tie: bool
    choices: tuple[TokenChoice, ...]


@dataclass(frozen=True)
class Curve:
    """Largest error at each token slot of a case, for logits or for one cache slot; null where nothing was compared.

    Attributes:
        tensor: ``logits`` or ``cache.N``.
        layer: Layer of the cache slot.
        errors: Against the reference of the question.
        noise: PyTorch's own float32 error against float64 at each slot; for logits only, and where float64 is known.
        largest_noise: The largest of it over the case; null where float64 is not known.
    """

    tensor: str
    layer: int | None
    errors: tuple[float | None, ...]
    noise: tuple[float | None, ...] = ()
    largest_noise: float | None = None


@dataclass(frozen=True)
class CaseRecord:
    """One case on one runner.

    Attributes:
        why: What the case is there to catch.
        steps: Calls of the case.
        played: Calls that were played and compared.
        chunks: Tokens of each call.
        pads: Left padding of each row of the case.
        starts: First slot of each call; empty where each begins where the one before ended.
        compared: Values compared.
        padded_slots: Slots left out because they are padding, counted once per call and output.
        rows: Cache rows compared, and how many there were: fewer where the reference holds a sample of them.
        max_abs_diff: Largest difference over all outputs; ``worst_*`` say where.
        needs_tol: Smallest tolerance that would pass; null where none would.
        top1: Share of live positions where both choose the same token.
        flips: Positions where they do not.
        near_ties: Flips that an error within the limit explains.
        budget: By output kind (``logits``, ``key``, ``value``).
        message: What kept the case from being judged, or stopped it.
        decode_ms: Median milliseconds of a one-token decode call, where several runners were compared.
    """

    question: Question
    runner: str
    case: str
    why: str
    verdict: Verdict
    steps: int
    played: int
    chunks: tuple[int, ...]
    pads: tuple[int, ...]
    starts: tuple[int, ...]
    compared: int
    padded_slots: int
    rows: tuple[int, int]
    limits: Mapping[str, float]
    max_abs_diff: Number | None = None
    worst_step: int | None = None
    worst_tensor: str | None = None
    worst_position: int | None = None
    needs_tol: Number | None = None
    top1: float | None = None
    flips: int = 0
    near_ties: int = 0
    budget: Mapping[str, Budget] = field(default_factory=dict)
    message: str = ""
    first_divergence: Divergence | None = None
    top_differences: tuple[TopDifference, ...] = ()
    curves: tuple[Curve, ...] = ()
    decode_ms: float | None = None

    def spans(self) -> list[tuple[int, int]]:
        """First slot of each call, and one past its last."""
        starts = self.starts or (0, *accumulate(self.chunks[:-1]))
        return [(start, start + tokens) for start, tokens in zip(starts, self.chunks, strict=True)]


@dataclass(frozen=True)
class TensorRecord:
    """One output on one runner over all cases: every metric, and the budget."""

    question: Question
    runner: str
    tensor: str
    layer: int | None
    metrics: Mapping[str, Number]
    needs_tol: Number | None
    budget: Budget | None


@dataclass(frozen=True)
class RunnerRecord:
    """One runner as it ran; ``message`` says why it could not where ``available`` is false.

    Attributes:
        required: Whether its absence keeps the answer from being a match: false where ``--runner all`` met an engine
            that takes bundles of another layout or profile.
        command: The command that repeats this runner; ``--case NAME`` behind it repeats one case.
    """

    name: str
    engine: str
    version: str
    settings: Mapping[str, str]
    adapted: str = ""
    available: bool = True
    message: str = ""
    required: bool = True
    command: str = ""


@dataclass(frozen=True)
class BundleRecord:
    """The bundle as far as a reader of the report needs it.

    Attributes:
        noise: PyTorch's largest own float32 error over the recorded cases, by output kind.
        quantization: What was quantised and what that cost; the reference is PyTorch with the quantised weights.
        exercises: Architecture features that the model has.
        not_proven: Features that it lacks, and the window where no recorded case passes it.
        sha256: Hash of the graphs, weights, cases and vectors; empty where files were let differ from the manifest.
    """

    name: str
    source: str
    model_type: str
    architecture: str
    parameters: int
    window: int | None
    pattern: str
    layout: str
    profile: str
    dtype: str
    vocab_size: int
    versions: Mapping[str, str]
    noise: Mapping[str, float]
    quantization: Quantization | None = None
    exercises: tuple[str, ...] = ()
    not_proven: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class QuestionRecord:
    """One question and its answer.

    Attributes:
        question: ``gate``, ``exact``, ``self``, ``recording`` or ``bundle``.
        title: The question in words.
        tol: The tolerance, or ``auto``.
        budget: Multiple of PyTorch's own error that ``auto`` allows.
        verdict: The answer.
        needs_tol: Smallest tolerance that would pass every case; null where none would.
        needs_budget: Smallest budget that would pass every case; null where float64 is not known.
        noise: PyTorch's own largest float32 error on the cases that were judged; null where float64 is not known.
        notes: What a reader should know of this answer.
    """

    question: Question
    title: str
    tol: float | Literal["auto"]
    budget: float | None
    verdict: Verdict
    needs_tol: Number | None
    needs_budget: Number | None
    first_divergence: Divergence | None
    notes: tuple[str, ...] = ()
    noise: Number | None = None


@dataclass(frozen=True)
class Covers:
    """What the verdict of the first question covers.

    Attributes:
        cases: Cases whose every call was judged.
        of_cases: Cases that the bundle has.
        longest: Positions of the longest of them.
        windows: Sliding windows of the model that a judged case passes.
        windows_not_crossed: Those that none does: nothing is said of what the graphs do beyond them.
        rows: Cache rows compared, over all calls.
        of_rows: Cache rows that the calls returned, padding aside.
        derived_logits: Whether the reference's logits were rebuilt in float64 from recorded hidden states.
    """

    cases: int = 0
    of_cases: int = 0
    longest: int = 0
    windows: tuple[int, ...] = ()
    windows_not_crossed: tuple[int, ...] = ()
    rows: int = 0
    of_rows: int = 0
    derived_logits: bool = False

    @property
    def complete(self) -> bool:
        """Whether every case was judged and every window crossed."""
        return self.cases == self.of_cases and not self.windows_not_crossed


@dataclass(frozen=True)
class ReportRecord:
    """Everything that one `compare` found; the JSON report is this record.

    Attributes:
        not_judged: Cases without recorded vectors, where ``--live`` was not given.
        command: The command that narrows the first divergence, or repeats a match.
        outputs: Glob patterns of the outputs that were judged; empty where all were.
        locations: With ``--locate``: whose fault each runner's first divergence is, and where it begins.
        reference: What the runners were compared with: which weights PyTorch ran with, and when.
        last_logits: Whether, of the logits of some calls, only the last position was there to be compared: with
            ``--logits last``, and in recordings that hold no more.
        covers: What the verdict covers.
        incomplete: Whether the verdict would be a match, but covers less than ``--require-complete`` asks for.
        package: Of a judged foreign package: what it offers, and its weights.
    """

    schema_version: int
    verdict: Verdict
    tol: float | Literal["auto"]
    bundle: BundleRecord
    runners: tuple[RunnerRecord, ...]
    questions: tuple[QuestionRecord, ...]
    first_divergence: Divergence | None
    cases: tuple[CaseRecord, ...]
    tensors: tuple[TensorRecord, ...]
    results: tuple[Result, ...]
    not_judged: tuple[str, ...]
    command: str
    outputs: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()
    reference: str = ""
    last_logits: bool = False
    covers: Covers = field(default_factory=Covers)
    incomplete: bool = False
    package: PackageRecord | None = None
