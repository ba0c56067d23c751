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


@dataclass(frozen=True, eq=False)
class Call:
    """One run of a graph: its tokens, the step of the case that it ends, if any, and its inputs but for the caches."""

    index: int
    graph: str
    start: int
    stop: int
    step: int | None
    feeds: dict[str, Any]


def play(manifest: dict[str, Any], sessions: dict[str, Any], case: dict[str, Any]) -> tuple[float, str]:
    """Largest difference of a case, and where it is; infinite for a wrong shape or a value that is not finite."""
    import numpy as np

    data = load(manifest, case)
    worst, place = 0.0, ""
    for group in groups(manifest["options"], data):
        past: dict[str, Any] = {}
        for call in calls(manifest["options"], case, group):
            session = sessions[call.graph]
            feeds = call.feeds | host_inputs(manifest, call.feeds, past)
            ports = {port.name: port for port in session.get_inputs()}
            feeds = {name: value for name, value in feeds.items() if name in ports}
            for name in ports.keys() - feeds.keys():
                dtype = manifest["options"]["dtype"] if ports[name].type != "tensor(float)" else "float32"
                feeds[name] = past[name] if past else empty_cache(ports[name].shape, dtype, group)
            names = [port.name for port in session.get_outputs()]
            outputs = dict(zip(names, session.run(names, feeds)))  # noqa: B905 (Python 3.9 has no strict)
            for name, expected, live, rows, ids in expectations(manifest, group, call):
                actual = outputs[name] if ids is None else np.take_along_axis(outputs[name], ids, 2)
                difference = distance(actual, expected, live, rows)
                if difference >= worst:
                    worst, place = difference, f"call {call.index}, {name}"
            past = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    return worst, place


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
            elif name.startswith("cache."):  # a state after each call
                into = filled(data, name, (batch, len(data["chunks"])), part)
                for call, stop in enumerate(np.cumsum(data["chunks"]) - pad):
                    into[row, call] = part[found["stops"] == stop][0] if stop > 0 else 0
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


def groups(options: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """A case's rows as many at a time as the graphs take; where a fixed batch lacks some, the last one again."""
    import numpy as np

    rows = data["attention_mask"].shape[0]
    size = options["batch"] if options["layout"] == "static" else rows
    calls = {"chunks", "first", "why"}
    taken = [np.minimum(np.arange(first, first + size), rows - 1) for first in range(0, rows, size)]
    return [{name: value[index] for name, value in data.items() if name not in calls} for index in taken]


def calls(options: dict[str, Any], case: dict[str, Any], data: dict[str, Any]) -> Iterator[Call]:
    """The calls of a case; in the static layout with the padding that their fixed sizes need."""
    import numpy as np

    tokens = ("input_ids", "position_ids")
    for index, (graph, start, stop, size) in enumerate(cuts(options, case)):
        feeds = {name: data[name][:, start:stop] for name in tokens}
        feeds["attention_mask"] = data["attention_mask"][:, :stop]
        if options["layout"] == "static":
            feeds = {name: padded(feeds[name], size if name in tokens else options["max_len"]) for name in feeds}
            place = np.arange(start, start + size)
            feeds["cache_position"] = np.where(place < stop, place, -1)
        ends = [sum(case["chunks"][: step + 1]) for step in range(len(case["chunks"]))]
        yield Call(index, graph, start, stop, ends.index(stop) if stop in ends else None, feeds)


def cuts(options: dict[str, Any], case: dict[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    """Graph, first token, one past the last and size of every call; the static layout cuts steps into chunks."""
    begin = 0
    for number, count in enumerate(case["chunks"]):
        graph = case["first"] if number == 0 else "decode"
        size = count
        if options["layout"] == "static":
            graph = "decode" if graph == "decode" and count == 1 else "prefill"
            size = 1 if graph == "decode" else options["chunk"]
        for start in range(begin, begin + count, size):
            yield graph, start, min(start + size, begin + count), size
        begin += count


def padded(array: Any, columns: int) -> Any:
    """Zeros after the last column."""
    import numpy as np

    return np.pad(array, ((0, 0), (0, columns - array.shape[1])))


def empty_cache(shape: list[Any], dtype: str, data: dict[str, Any]) -> Any:
    """What the first call of a conversation takes: no rows, and zeros where a size is fixed."""
    import numpy as np

    batch = data["input_ids"].shape[0]
    sizes = [batch, *(size if isinstance(size, int) else 0 for size in shape[1:])]
    return np.zeros(sizes, dtype)


def capacity(options: dict[str, Any], slot: dict[str, Any]) -> int:
    """Rows of a slot's buffer in the static layout; slot s of the history lies in row s modulo this."""
    if slot["window"] is None or options["sliding_cache"] != "bounded":
        return int(options["max_len"])
    return int(min(slot["window"] + options.get("rewind", 0), options["max_len"]))


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
        rows = capacity(options, slot) if fixed else stop
        if not fixed and slot["window"] is not None and options["sliding_cache"] == "bounded":
            rows = slot["window"] - 1 + options.get("rewind", 0)
        kept = np.arange(max(stop - rows, 0), stop)
        for part in ("key", "value") if slot["kv_heads"] else ():
            wanted = data[f"cache.{slot['slot']}.{part}"][:, :, kept]
            live = (mask[:, kept] == 1) & data.get("recorded", mask)[:, kept].astype(bool)
            yield f"present.{slot['slot']}.{part}", wanted, live, kept % rows if fixed else None, None
        for state in slot["states"] if call.step is not None else ():
            wanted = state_after(data[f"cache.{slot['slot']}.{state['part']}"], state, call)
            yield f"present.{slot['slot']}.{state['part']}", wanted, None, None, None


def state_after(recorded: Any, state: dict[str, Any], call: Call) -> Any:
    """A state after a call: the newest columns of a convolution, zeros before the first; else one state per call."""
    import numpy as np

    if state["part"] != "conv_state":
        return recorded[:, call.step]
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
