"""Tables of what run.py measured: peers, floor, goals with what misses them, and what compare says of our bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["REFERENCE", "Goal", "Outcome", "exit_code", "goals", "put", "quantile", "text"]

REFERENCE = "kvparity_ort"  # it is in every group of peers, so that groups can be compared
OTHER_CLASS = ("llamacpp", "kvparity_gguf_level4", "kvparity_int4", "genai_int4")  # round: no peers of float32 decoders
WRONG = 0.1  # logits further from PyTorch's are another model's; rounding stays under 0.03 on what we measured


@dataclass(frozen=True)
class Goal:
    """A ratio or a figure that the project wants, and what was reached.

    Attributes:
        name: What it is, with its limit.
        limit: The largest value that meets it.
        reached: What was measured, or None.
        note: Whose figure it is, or why there is none.
    """

    name: str
    limit: float
    reached: float | None
    note: str = ""

    @property
    def missed(self) -> float:
        """By how much it is missed; 0 where it is met."""
        return 0.0 if self.reached is None else max(0.0, self.reached - self.limit)


@dataclass(frozen=True)
class Outcome:
    """What one run measured; the JSON file is this record.

    Attributes:
        contexts: Tokens in the cache when decoding was timed.
        goals: Whose goals apply.
        peers: By name: seconds of every step by context and of every prefill, what export and load cost; or
            ``failed``.
        floor: ``decode`` and ``prefill`` in seconds of the matrix products alone, ``bytes`` of weights per token,
            ``copy`` in bytes per second; empty where it was not measured.
        judged: By bundle, what compare said, one record per tolerance asked.
    """

    contexts: tuple[int, ...]
    goals: Literal["tiny", "real", "4bit"]
    peers: Mapping[str, Mapping[str, Any]]
    floor: Mapping[str, Any]
    judged: Mapping[str, Sequence[Mapping[str, Any]]]

    def low(self, name: str, what: str) -> float | None:
        """Fastest tenth in milliseconds, of decoding at a context or of ``prefill``; None where it failed."""
        result = self.peers.get(name, {"failed": ""})
        if "failed" in result or not seconds_of(result, what):
            return None
        return quantile(seconds_of(result, what), 0.1)

    def relative(self, name: str, what: str) -> float | None:
        """The same beside the reference peer of its group, so that groups can be compared."""
        low = self.low(name, what)
        return low if low is None else low / float(self.peers[name].get("beside", {}).get(what, 1.0))

    def best(self, what: str, wanted: Callable[[str], bool]) -> tuple[float, str] | None:
        """The smallest relative time among peers that a rule takes and that compute the model, and whose it is."""
        right = [name for name, result in self.peers.items() if result.get("off", 0.0) <= WRONG]
        times = [(self.relative(name, what), name) for name in right if wanted(name)]
        return min(((time, name) for time, name in times if time is not None), default=None)


def seconds_of(result: Mapping[str, Any], what: str) -> list[float]:
    """Timings of a peer: of a context, or of ``prefill``."""
    return list(result["prefill"] if what == "prefill" else result["decode"].get(what, ()))


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile of timings in milliseconds; the nearest value, no interpolation."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] * 1000


def ours(name: str) -> bool:
    """Whether a peer is this project."""
    return name.startswith("kvparity")


def theirs(name: str) -> bool:
    """Whether a peer is another's, and of our class."""
    return not ours(name) and name not in OTHER_CLASS


def goals(outcome: Outcome) -> list[Goal]:
    """Every goal of the model, with what this run reached."""
    return list({"tiny": _tiny, "real": _real, "4bit": _four_bits}[outcome.goals](outcome))


def _tiny(outcome: Outcome) -> Iterator[Goal]:
    first, last = (str(outcome.contexts[at]) for at in (0, -1))
    for what, limit in ((first, 0.67), (last, 0.5), ("prefill", 0.9)):
        yield _against_best(outcome, what, f"{_called(what)}: at most {limit} of the best peer's", limit)
    best = outcome.best(last, ours)
    ratio = _ratio(outcome.low(best[1], last), outcome.low(best[1], first)) if best else None
    yield Goal(f"decode at {last}: at most 1.15 of {first}", 1.15, ratio, best[1] if best else "not measured")
    yield _export(outcome, "kvparity_portable", "export_s", "export, seconds: at most 8", 8.0)


def _real(outcome: Outcome) -> Iterator[Goal]:
    first = str(outcome.contexts[0])
    limit = memory_limit(outcome.floor)
    best = outcome.best(first, ours)
    ratio = _ratio(outcome.low(best[1], first), limit) if best else None
    name = f"{_called(first)}: at most 1.15 of the memory limit"
    yield Goal(name, 1.15, ratio, best[1] if best and limit else "not measured")
    for what in (*map(str, outcome.contexts), "prefill"):
        yield _against(outcome, what, "genai_builder", f"{_called(what)}: at most onnxruntime-genai's own build", 1.0)
    for what in map(str, outcome.contexts):
        ratio = _ratio(outcome.relative("kvparity_portable", what), outcome.relative(REFERENCE, what))
        yield Goal(f"portable at {what} tokens: at most 1.5 of ort", 1.5, ratio, "both in the dynamic layout")
    yield _export(outcome, "kvparity_portable", "export_s", "export, seconds: at most 20", 20.0)
    yield _export(outcome, "kvparity_portable", "peak_mb", "export, peak MB: at most 1000", 1000.0)


def _four_bits(outcome: Outcome) -> Iterator[Goal]:
    for name in ("kvparity_gguf_level4", "kvparity_gguf"):
        for what, limit in ((str(outcome.contexts[0]), 0.8), (str(outcome.contexts[1]), 0.8), ("prefill", 0.9)):
            ratio = _ratio(outcome.relative(name, what), outcome.relative("llamacpp", what))
            yield Goal(f"{_called(what)}: at most {limit} of llama.cpp's", limit, ratio, f"{name} : llamacpp")
    for name, limit in (("kvparity_gguf", 1.00001), ("kvparity_int4", 1.03)):
        both = (outcome.peers.get(peer, {}).get("perplexity") for peer in (name, REFERENCE))
        yield Goal(f"perplexity: at most {limit} of float32's", limit, _ratio(*both), f"{name} : {REFERENCE}")


def _called(what: str) -> str:
    return "prefill of 512" if what == "prefill" else f"decode at {what} tokens"


def _against_best(outcome: Outcome, what: str, name: str, limit: float) -> Goal:
    peer = outcome.best(what, theirs)
    if peer is None:
        return Goal(name, limit, None, "no peer was measured")
    return _against(outcome, what, peer[1], name, limit)


def _against(outcome: Outcome, what: str, peer: str, name: str, limit: float) -> Goal:
    best, other = outcome.best(what, ours), outcome.relative(peer, what)
    if best is None or other is None:
        why = str(outcome.peers.get(peer, {}).get("failed", "not asked for"))
        return Goal(name, limit, None, f"{peer}: {why}")
    return Goal(name, limit, best[0] / other, f"{best[1]} : {peer}")


def _export(outcome: Outcome, peer: str, key: str, name: str, limit: float) -> Goal:
    result = outcome.peers.get(peer, {"failed": "not asked for"})
    if "failed" in result:
        return Goal(name, limit, None, f"{peer}: {result['failed']}")
    return Goal(name, limit, float(result[key]), peer)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def memory_limit(floor: Mapping[str, Any]) -> float | None:
    """Milliseconds in which the weights of one token could be copied; None where that was not measured."""
    return None if not floor.get("copy") else floor["bytes"] / max(floor["copy"]) * 1000


def exit_code(outcome: Outcome) -> int:
    """1 when a bundle of ours was not made, was not judged or passes none of its tolerances; goals may be missed."""
    bundles = {name: result for name, result in outcome.peers.items() if ours(name)}
    passed = (any(record["verdict"] == "match" for record in outcome.judged.get(name, ())) for name in bundles)
    return 0 if all(passed) and not any("failed" in result for result in bundles.values()) else 1


def text(outcome: Outcome) -> str:
    """Everything as Markdown."""
    parts = [_peers(outcome), _floor(outcome), _goals(outcome), _judged(outcome)]
    return "\n\n".join(part for part in parts if part)


def put(outcome: Outcome, page: str) -> str:
    """A page with the tables of this model replaced, between ``<!-- tiny -->`` and its end, or ``real``."""
    begin, end = f"<!-- {outcome.goals} -->\n", f"<!-- /{outcome.goals} -->\n"
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text(outcome)}\n\n{end}{rest.split(end)[1]}"


def _peers(outcome: Outcome) -> str:
    head = ["", "export s", "peak MB", "bundle MB", "load s", "max Δ past the window"]
    if outcome.goals == "4bit":
        head += ["resident MB", "perplexity"]
    head += [f"ms @{context} (fastest tenth)" for context in outcome.contexts]
    lines = [*_head([*head, "prefill 512 ms"])]
    lines += [_row([name, *_cells(outcome, name)], len(head) + 1) for name in outcome.peers]
    return "\n".join(lines)


def _cells(outcome: Outcome, name: str) -> list[str]:
    result = outcome.peers[name]
    if "failed" in result:
        return [f"fails: {result['failed']}".replace("|", "/")]
    exported = result["export_s"] > 0
    cells = [f"{result['export_s']:.1f}" if exported else "–", f"{result['peak_mb']:.0f}" if exported else "–"]
    cells += [f"{result['mb']:.1f}" if result["mb"] else "–", f"{result['load_s']:.2f}"]
    cells.append("reference" if name == "torch_eager" else _difference(name, result.get("off")))
    if outcome.goals == "4bit":
        cells += [f"{result['resident_mb']:.0f}", f"{result['perplexity']:.6g}" if "perplexity" in result else "–"]
    for what in (*map(str, outcome.contexts), "prefill"):
        low, best = outcome.low(name, what), outcome.best(what, theirs)
        if low is None:
            cells.append("–")
            continue
        share = (outcome.relative(name, what) or 0.0) / best[0] if best else 1.0
        digits = 1 if low >= 20 else 3
        median = quantile(seconds_of(result, what), 0.5)
        cells.append(f"{median:.{digits}f} ({low:.{digits}f}) {share:.2f}x")
    return cells


def _difference(name: str, off: float | None) -> str:
    if off is None:
        return "–"
    return f"{off:.1e}, rounded" if name in OTHER_CLASS else f"{off:.1e}, wrong" if off > WRONG else f"{off:.1e}"


def _floor(outcome: Outcome) -> str:
    floor, limit = outcome.floor, memory_limit(outcome.floor)
    if not floor.get("decode"):
        return ""
    products, prefill = quantile(floor["decode"], 0.1), quantile(floor["prefill"], 0.1)
    size = floor["bytes"] / 1e6
    lines = [f"floor, one token: the matrix products alone take {products:.3f} ms, for {size:.1f} MB of weights"]
    if limit:
        speed = max(floor["copy"]) / 1e9
        lines[0] += f"; memory is copied at {speed:.1f} GB/s, at which the weights take {limit:.3f} ms"
    for name in filter(ours, outcome.peers):
        low = outcome.low(name, str(outcome.contexts[0]))
        if low is not None:
            share = f", the memory limit {limit / low:.2f}" if limit else ""
            lines.append(f"{name} at {outcome.contexts[0]} tokens: the products are {products / low:.2f} of it{share}")
    lines.append(f"floor, 512 tokens: numpy's sgemm of the same sizes takes {prefill:.1f} ms")
    for name in filter(ours, outcome.peers):
        low = outcome.low(name, "prefill")
        if low is not None:
            lines.append(f"{name}, 512 tokens: the products are {prefill / low:.2f} of it")
    return "\n".join(f"- {line}" for line in lines)


def _goals(outcome: Outcome) -> str:
    lines = [*_head(["goal", "reached", "missed by", ""])]
    for goal in goals(outcome):
        if goal.reached is None:
            cells = ["not measured", "–"]
        else:
            digits = 0 if goal.limit >= 100 else 1 if goal.limit >= 5 else 2
            cells = [f"{goal.reached:.{digits}f}", f"{goal.missed:.{digits}f}" if goal.missed else "met"]
        lines.append(_row([goal.name, *cells, goal.note.replace("|", "/")], 4))
    return "\n".join(lines)


def _judged(outcome: Outcome) -> str:
    if not any(map(ours, outcome.peers)):
        return ""
    lines = [*_head(["bundle", "compare", "cases", "largest difference"])]
    for name in filter(ours, outcome.peers):
        for record in outcome.judged.get(name, ()):
            cells = [f"--tol {record['tol']}: {record['verdict']}", str(record["cases"]), str(record["worst"])]
            lines.append(_row([name, *cells], 4))
        if not outcome.judged.get(name):
            lines.append(_row([name, "not judged"], 4))
    return "\n".join(lines)


def _head(cells: Sequence[str]) -> tuple[str, str]:
    return _row(cells, len(cells)), "|---" * len(cells) + "|"


def _row(cells: Sequence[str], width: int) -> str:
    return "| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |"
