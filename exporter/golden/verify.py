#!/usr/bin/env python3
"""Replays the recorded cases of this bundle in ONNX Runtime and compares every value with what PyTorch computed.

Needs numpy and onnxruntime, nothing else. Exit codes: 0 match, 1 mismatch, 2 could not tell (a file is missing or is
not the one that manifest.json names, an engine error, nothing to compare).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).absolute().parent  # in a hub cache, this file itself is a link
ROOT = _HERE if (_HERE / "manifest.json").is_file() else Path(__file__).resolve().parent
_INSTEAD = "use kvparity's compare command"


class CouldNotTellError(Exception):
    """What kept us from comparing."""


def main(arguments: list[str] | None = None) -> int:
    """Check the files, replay the cases, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names of cases (all recorded ones if left out)")
    parser.add_argument("--no-hash", action="store_true", help="accept files whose sha256 differs from the manifest")
    parser.add_argument("--tol", type=float, help="largest difference that passes (default: cases/golden.json)")
    given = parser.parse_args(arguments)
    try:
        return verify(given.cases, check=not given.no_hash, tol=given.tol)
    except CouldNotTellError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install numpy onnxruntime", file=sys.stderr)
    except Exception as error:
        told = "it holds Python objects" if "pickle" in str(error) else (str(error).splitlines() or [""])[0]
        print(f"error: a file of this bundle is damaged, or an engine failed ({told})", file=sys.stderr)
    return 2


def verify(names: list[str], *, check: bool, tol: float | None) -> int:
    """Replay cases; 0 where every value is within the tolerance, else 1."""
    manifest = json.loads((ROOT / "manifest.json").read_text("utf-8"))
    if check:
        check_files(manifest)
    check_playable(manifest["options"])
    known = {sequence["name"]: sequence for sequence in manifest["sequences"] if sequence["logits"] != "none"}
    recorded = [case for case in manifest["cases"] if all(row["sequence"] in known for row in case["rows"])]
    if not recorded:
        raise CouldNotTellError("this bundle was exported without reference vectors; there is nothing to compare with")
    golden = json.loads((ROOT / "cases" / "golden.json").read_text("utf-8"))
    tol = golden["tolerance"][manifest["options"]["dtype"]] if tol is None else tol
    chosen = [case for case in recorded if not names or case["name"] in names]
    missing = [case["name"] for case in chosen if not all(inside(path).is_file() for path in paths_of(manifest, case))]
    if missing and check:
        raise CouldNotTellError(f"the vectors of {', '.join(missing)} are missing (--no-hash replays the others)")
    chosen = [case for case in chosen if case["name"] not in missing]
    if not chosen or any(name not in [case["name"] for case in recorded] for name in names):
        raise CouldNotTellError(f"cases are {', '.join(case['name'] for case in recorded)}")
    sessions = open_graphs(manifest)
    worst = 0.0
    for case in chosen:
        difference, place = play(manifest, sessions, case)
        worst = max(worst, difference)
        verdict = "ok      " if difference <= tol else "MISMATCH"
        print(f"{verdict} {case['name']:20} {difference:.3g}  {place}")
    left = f" ({len(missing)} not there)" if missing else ""
    print(f"{len(chosen)} cases{left}, largest difference {worst:.3g}, tolerance {tol:g}")
    return 0 if worst <= tol else 1


def check_playable(options: dict[str, Any]) -> None:
    """Refuse what numpy and onnxruntime alone can't play."""
    if options["layout"] not in ("dynamic", "static"):
        raise CouldNotTellError(
            f"this script plays the dynamic and static layouts, not {options['layout']}; {_INSTEAD}"
        )
    if options["dtype"] == "bfloat16":
        raise CouldNotTellError(f"numpy has no bfloat16; {_INSTEAD}")
    if options.get("provider", "cpu") != "cpu":
        raise CouldNotTellError(f"the graphs are for {options['provider']}; {_INSTEAD}")


def check_files(manifest: dict[str, Any]) -> None:
    """Refuse files that are missing or changed."""
    vectors = [item["file"] for item in [*manifest["cases"], *manifest["sequences"]]]
    entries = [graph["file"] for graph in manifest["graphs"].values()] + manifest["weights"] + manifest["files"]
    for entry in entries + [entry for entry in vectors if inside(entry["path"]).is_file()]:
        path = inside(entry["path"])
        if not path.is_file():
            raise CouldNotTellError(f"{entry['path']} is missing")
        if digest(path) != entry["sha256"]:
            raise CouldNotTellError(f"{entry['path']} is not the file that manifest.json names (--no-hash accepts it)")


def inside(name: str) -> Path:
    """A file that the manifest names; names may not leave the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CouldNotTellError(f"file name {name!r} leaves the bundle's folder; refused")
    return ROOT / name


def digest(path: Path) -> str:
    """The sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def open_graphs(manifest: dict[str, Any]) -> dict[str, Any]:
    """One ONNX Runtime session per graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        root = ROOT if readable(manifest) else linked(manifest, Path(folder))
        return {
            kind: onnxruntime.InferenceSession(str(root / graph["file"]["path"]), options, ["CPUExecutionProvider"])
            for kind, graph in manifest["graphs"].items()
        }


def readable(manifest: dict[str, Any]) -> bool:
    """Whether ONNX Runtime takes the weights where they are: links that leave the folders of both files it refuses."""
    weights = [inside(entry["path"]).resolve() for entry in manifest["weights"]]
    graphs = [inside(graph["file"]["path"]) for graph in manifest["graphs"].values()]
    folders = [{graph.parent.resolve(), graph.resolve().parent} for graph in graphs]
    return all(file.parent in pair for file in weights for pair in folders)


def linked(manifest: dict[str, Any], folder: Path) -> Path:
    """A folder with the graphs and the weights, as hard links where the disk allows it."""
    for entry in [graph["file"] for graph in manifest["graphs"].values()] + manifest["weights"]:
        try:
            os.link(inside(entry["path"]).resolve(), folder / entry["path"])
        except OSError:
            shutil.copyfile(inside(entry["path"]), folder / entry["path"])
    return folder


@dataclass(frozen=True)
class Step:
    """One step of a case: its slots, its rows of the case, and where it continues (see docs/bundle.md, moves).

    ``reached`` is how many slots the caches in hand came to: more than ``start`` where their newest rows are dropped.
    """

    index: int
    graph: str
    start: int
    stop: int
    reached: int
    rows: list[int]
    past: list[list[int]]


@dataclass(frozen=True, eq=False)
class Call:
    """One run of a graph: its slots, the step that it belongs to, whether it ends it, and its inputs but for caches."""

    step: Step
    graph: str
    start: int
    stop: int
    last: bool
    feeds: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Played:
    """What a step was fed with and what it returned, by name of the input: buffers or rows of its whole batch."""

    step: Step
    before: dict[str, Any]
    after: dict[str, Any]


def play(manifest: dict[str, Any], sessions: dict[str, Any], case: dict[str, Any]) -> tuple[float, str]:
    """Largest difference of a case, and where it is; infinite for a wrong shape or a value that is not finite."""
    import numpy as np

    data = load(manifest, case)
    worst, place, count = 0.0, "", 0
    done: list[Played] = []
    for step in steps(case):
        before = pasts(manifest, data, done, step)
        after: list[dict[str, Any]] = []
        for rows in groups(manifest["options"], len(step.rows)):
            group, past = picked(data, step, rows), {name: array[rows] for name, array in before.items()}
            for call in calls(manifest["options"], step, group):
                outputs = run(manifest, sessions[call.graph], call, past, len(rows))
                for name, expected, live, kept, ids in expectations(manifest, group, call):
                    actual = outputs[name] if ids is None else np.take_along_axis(outputs[name], ids, 2)
                    difference = distance(actual, expected, live, kept)
                    if difference >= worst:
                        worst, place = difference, f"call {count}, {name}"
                past = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
                count += 1
            after.append(past)
        names = after[0].keys() - {"logits"}
        joined = {name: np.concatenate([part[name] for part in after])[: len(step.rows)] for name in names}
        done.append(Played(step, before, joined))
    return worst, place


def run(manifest: dict[str, Any], session: Any, call: Call, past: dict[str, Any], batch: int) -> dict[str, Any]:
    """Outputs of one call by name."""
    check_feeds(manifest, call, past)
    feeds = call.feeds | host_inputs(manifest, call.feeds, past)
    ports = {port.name: port for port in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in ports}
    for name in ports.keys() - feeds.keys():
        dtype = manifest["options"]["dtype"] if ports[name].type != "tensor(float)" else "float32"
        feeds[name] = past[name] if past else empty_cache(ports[name].shape, dtype, batch)
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))  # noqa: B905 (Python 3.9 has no strict)


def steps(case: dict[str, Any]) -> Iterator[Step]:
    """The steps of a case in order."""
    start = peak = 0
    for index, tokens in enumerate(case["chunks"]):
        move: dict[str, Any] = {"start": start, "rows": list(range(case["batch"])), "past": []}
        if case.get("moves"):
            move = case["moves"][index]
        start = move["start"]
        if move["past"] or not start:  # other caches than those in hand
            peak = start
        graph = "decode" if start else case["first"]
        yield Step(index, graph, start, start + tokens, max(peak, start), list(move["rows"]), move["past"])
        start += tokens
        peak = max(peak, start)


def pasts(manifest: dict[str, Any], data: dict[str, Any], done: list[Played], step: Step) -> dict[str, Any]:
    """Caches of a step's rows: those in hand, their newest rows dropped, or those of the steps that it names."""
    import numpy as np

    if not step.start:
        return {}
    if not step.past:
        held, fixed = done[-1], manifest["options"]["layout"] == "static"
        dropped = 0 if fixed else held.step.stop - step.start  # of a buffer, other rows are read: cache_position says
        return {name: cropped(array, dropped) for name, array in held.after.items()}
    made: dict[str, Any] = {}
    for slot in manifest["model"]["slots"]:
        for part in [*(("key", "value") if slot["kv_heads"] else ()), *(state["part"] for state in slot["states"])]:
            name = f"past_key_values.{slot['slot']}.{part}"
            rows = [row_of(manifest, data, done, step, place, slot, name) for place in range(len(step.rows))]
            made[name] = np.stack(rows)
    return made


def cropped(array: Any, dropped: int) -> Any:
    """Keys or values without their newest rows."""
    return array[:, :, : array.shape[2] - dropped] if dropped else array


def row_of(
    manifest: dict[str, Any],
    data: dict[str, Any],
    done: list[Played],
    step: Step,
    place: int,
    slot: dict[str, Any],
    name: str,
) -> Any:
    """One batch row of a cache: of the step that it continues, older rows of what that one was fed with."""
    import numpy as np

    source, row = done[step.past[place][0]], step.past[place][1]
    after = source.after[name][row]
    if not name.endswith(("key", "value")):
        return after
    pads = [int((data["attention_mask"][index] == 0).sum()) for index in (step.rows[place], source.step.rows[row])]
    shift, options = pads[0] - pads[1], manifest["options"]
    fixed, most = options["layout"] == "static", most_rows(options, slot)
    slots = np.arange(max(step.start - most, 0), step.start)
    made = np.zeros((len(after), most if fixed else len(slots), after.shape[2]), after.dtype)
    oldest = max(source.step.stop - (most if fixed else after.shape[1]), 0) + shift
    wanted = slots[slots >= shift]  # a joining text has no rows for its new padding
    for held, end, found in (
        (source.before.get(name, [after] * (row + 1))[row], source.step.start, wanted[wanted < oldest]),
        (after, source.step.stop, wanted[wanted >= oldest]),
    ):
        rows = (found - shift) % most if fixed else found - shift - end + held.shape[1]
        made[:, found % most if fixed else found - slots[0]] = held[:, rows]
    return made


def check_feeds(manifest: dict[str, Any], call: Call, past: dict[str, Any]) -> None:
    """Refuse a past that lacks rows and a mask that lacks columns: graphs give wrong numbers for both, and no error."""
    if manifest["options"]["layout"] != "dynamic":
        return
    mask, wanted = call.feeds["attention_mask"].shape, (len(call.feeds["input_ids"]), call.stop)
    if mask != wanted:
        raise CouldNotTellError(
            f"step {call.step.index}: attention_mask is {mask}, expected {wanted}, all slots so far"
        )
    for slot in manifest["model"]["slots"] if past else ():
        for part in ("key", "value") if slot["kv_heads"] else ():
            rows = past[f"past_key_values.{slot['slot']}.{part}"].shape[2]
            needed = min(call.start, (slot["window"] or call.start + 1) - 1)
            if rows < needed:
                raise CouldNotTellError(
                    f"step {call.step.index}: past_key_values.{slot['slot']}.{part} has {rows} rows after {call.start} "
                    f"tokens, expected {needed} at least"
                )


def paths_of(manifest: dict[str, Any], case: dict[str, Any]) -> list[str]:
    """Files of a case: its inputs, then the sequence of each row."""
    paths = {sequence["name"]: sequence["file"]["path"] for sequence in manifest["sequences"]}
    return [case["file"]["path"], *(paths[row["sequence"]] for row in case["rows"])]


def load(manifest: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a case, and what is expected of it, by slot: each row begins the sequence that the manifest names."""
    import numpy as np

    inputs, *paths = paths_of(manifest, case)
    data = dict(np.load(inside(inputs), allow_pickle=False))
    batch, total = data["input_ids"].shape
    data["recorded"] = np.zeros((batch, total), bool)
    for row, place in enumerate(case["rows"]):
        found = np.load(inside(paths[row]), allow_pickle=False)
        pad, count = place["pad"], total - place["pad"]
        rows = found["rows"] if "rows" in found.files else np.arange(total)
        rows = rows[rows < count]
        data["recorded"][row, rows + pad] = True
        for name in found.files:
            part, kind = found[name], name.rpartition(".")[2]
            if kind in ("key", "value"):
                into = filled(data, name, (batch, len(part), total), part)
                into[row, :, rows + pad] = np.moveaxis(part[:, : len(rows)], 1, 0)
            elif kind == "conv_state":  # the column that each token adds
                filled(data, name, (batch, len(part), total), part)[row, :, pad:] = part[:, :count]
            elif name.startswith("cache."):  # a state after each step that carries the row
                into = filled(data, name, (batch, len(case["chunks"])), part)
                for step in steps(case):
                    stop = step.stop - pad
                    if row in step.rows:
                        into[row, step.index] = part[found["stops"] == stop][0] if stop > 0 else 0
            elif name in ("logits", "top_ids", "top_logits", "column_logits"):
                filled(data, name, (batch, total), part)[row, pad:] = part[:count]
            elif name == "column_ids":
                data[name] = np.broadcast_to(part, (batch, total, len(part)))
    return data


def filled(data: dict[str, Any], name: str, axes: tuple[int, ...], part: Any) -> Any:
    """An array of a case, zeros where nobody wrote yet; its last axes are those of a sequence's part."""
    import numpy as np

    if name not in data:
        data[name] = np.zeros((*axes, *part.shape[len(axes) - 1 :]), part.dtype)
    return data[name]


def groups(options: dict[str, Any], rows: int) -> list[Any]:
    """Rows of a batch as many at a time as the graphs take; where a fixed batch lacks some, the last one again."""
    import numpy as np

    size = options["batch"] if options["layout"] == "static" else rows
    return [np.minimum(np.arange(first, first + size), rows - 1) for first in range(0, rows, size)]


def picked(data: dict[str, Any], step: Step, rows: Any) -> dict[str, Any]:
    """Some rows of a step, of all arrays of its case."""
    other = {"chunks", "first", "why"}
    return {name: value[[step.rows[row] for row in rows]] for name, value in data.items() if name not in other}


def calls(options: dict[str, Any], step: Step, data: dict[str, Any]) -> Iterator[Call]:
    """The calls of a step; in the static layout with the padding that their fixed sizes need."""
    import numpy as np

    tokens = ("input_ids", "position_ids")
    for graph, start, stop, size in cuts(options, step):
        feeds = {name: data[name][:, start:stop] for name in tokens}
        feeds["attention_mask"] = data["attention_mask"][:, :stop]
        if options["layout"] == "static":
            feeds = {name: padded(feeds[name], size if name in tokens else options["max_len"]) for name in feeds}
            place = np.arange(start, start + size)
            feeds["cache_position"] = np.where(place < stop, place, -1)
        yield Call(step, graph, start, stop, stop == step.stop, feeds)


def cuts(options: dict[str, Any], step: Step) -> Iterator[tuple[str, int, int, int]]:
    """Graph, first token, one past the last and size of every call; the static layout cuts steps into chunks."""
    graph, size = step.graph, step.stop - step.start
    if options["layout"] == "static":
        graph = "decode" if graph == "decode" and size == 1 else "prefill"
        size = 1 if graph == "decode" else options["chunk"]
    for start in range(step.start, step.stop, size):
        yield graph, start, min(start + size, step.stop), size


def padded(array: Any, columns: int) -> Any:
    """Zeros after the last column."""
    import numpy as np

    return np.pad(array, ((0, 0), (0, columns - array.shape[1])))


def empty_cache(shape: list[Any], dtype: str, batch: int) -> Any:
    """What the first call of a conversation takes: no rows, and zeros where a size is fixed."""
    import numpy as np

    sizes = [batch, *(size if isinstance(size, int) else 0 for size in shape[1:])]
    return np.zeros(sizes, dtype)


def most_rows(options: dict[str, Any], slot: dict[str, Any]) -> int:
    """Most rows that a slot keeps; in the static layout rows of its buffer: slot s lies in row s modulo this."""
    fixed = options["layout"] == "static"
    whole = options["max_len"] if fixed else 1 << 62
    if slot["window"] is None or options["sliding_cache"] != "bounded":
        return int(whole)
    return int(min(slot["window"] - (not fixed) + options.get("rewind", 0), whole))


def host_inputs(manifest: dict[str, Any], feeds: dict[str, Any], past: dict[str, Any]) -> dict[str, Any]:
    """Masks and rotary tables of the bare profile, after the formulas in manifest.json."""
    import numpy as np

    made, dtype = {}, manifest["options"]["dtype"]
    total, tokens = feeds["attention_mask"].shape[1], feeds["input_ids"].shape[1]
    for item in manifest.get("host_inputs", []):
        window, rope = item["window"], item["rope"]
        if rope is None:
            slot = next(slot for slot in manifest["model"]["slots"] if slot["window"] == window)
            rows = tokens + (past[f"past_key_values.{slot['slot']}.key"].shape[2] if past else 0)
            query, key = np.arange(total - tokens, total)[:, None], np.arange(total - rows, total)[None, :]
            seen = (key <= query) & (query - key < (window or total + 1))
            seen = seen & (feeds["attention_mask"][:, None, total - rows :] == 1)
            value = np.where(seen[:, None], 0.0, item["blocked"])
        else:
            angle = feeds["position_ids"].astype(np.float32)[..., None] * np.asarray(rope["inv_freq"], np.float32)
            if rope["arrangement"] == "halves":
                angle = np.concatenate([angle, angle], axis=-1)
            elif rope["arrangement"] == "pairs":
                angle = np.repeat(angle, 2, axis=-1)
            value = getattr(np, item["kind"])(angle) * np.float32(rope["scaling"])
        made[item["name"]] = value.astype(dtype)
    return made


def expectations(
    manifest: dict[str, Any], data: dict[str, Any], call: Call
) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """Name, value, live slots, rows that count and logits that count of every output of a call; None: all of them."""
    import numpy as np

    options, mask, start, stop = manifest["options"], data["attention_mask"], call.start, call.stop
    fixed = options["layout"] == "static"
    first = stop - 1 if options["logits"] == "last" else start
    values, ids = data.get("logits"), None
    if values is None:  # of a large vocabulary: the largest ones and some fixed columns
        ids = np.concatenate([data["top_ids"], data["column_ids"]], axis=2)[:, first:stop].astype(np.int64)
        values = np.concatenate([data["top_logits"], data["column_logits"]], axis=2)
    tokens = np.arange(stop - first) if fixed else None
    yield "logits", values[:, first:stop], mask[:, first:stop] == 1, tokens, ids
    for slot in manifest["model"]["slots"]:
        most = most_rows(options, slot)
        kept = np.arange(min(max(max(call.step.reached, stop) - most, 0), stop), stop)
        for part in ("key", "value") if slot["kv_heads"] else ():
            wanted = data[f"cache.{slot['slot']}.{part}"][:, :, kept]
            live = (mask[:, kept] == 1) & data.get("recorded", mask)[:, kept].astype(bool)
            yield f"present.{slot['slot']}.{part}", wanted, live, kept % most if fixed else None, None
        for state in slot["states"] if call.last else ():
            wanted = state_after(data[f"cache.{slot['slot']}.{state['part']}"], state, call)
            yield f"present.{slot['slot']}.{state['part']}", wanted, None, None, None


def state_after(recorded: Any, state: dict[str, Any], call: Call) -> Any:
    """A state after a call: the newest columns of a convolution, zeros before the first; else one state per call."""
    import numpy as np

    if state["part"] != "conv_state":
        return recorded[:, call.step.index]
    columns = state["shape"][1]
    newest = recorded[:, :, max(call.stop - columns, 0) : call.stop]
    return np.pad(newest, ((0, 0), (0, 0), (columns - newest.shape[2], 0)))


def distance(actual: Any, expected: Any, live: Any, rows: Any = None) -> float:
    """Largest difference over live slots; slots are axis 1 of logits and axis 2 of caches."""
    import numpy as np

    axis = 2 if expected.ndim == 4 and live is not None else 1
    if rows is not None and actual.ndim == expected.ndim and actual.shape[axis] > rows.max(initial=-1):
        actual = np.take(actual, rows, axis)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    if live is None:
        live = np.ones(expected.shape[:2], bool)
    actual, expected = np.moveaxis(actual, axis, 1), np.moveaxis(expected, axis, 1)
    difference = np.abs(actual[live].astype(np.float64) - expected[live].astype(np.float64))
    largest = float(difference.max(initial=0.0))
    return largest if np.isfinite(difference).all() else float("inf")


if __name__ == "__main__":
    sys.exit(main())
