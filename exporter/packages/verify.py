#!/usr/bin/env python3
"""Replays the recorded cases of this bundle in ONNX Runtime and compares every value with what PyTorch computed.

Needs numpy and onnxruntime, nothing else. Exit codes: 0 match, 1 mismatch, 2 could not tell (a file is missing or is
not the one that manifest.json names, an engine error, nothing to compare).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent


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
    except Exception as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    return 2


def verify(names: list[str], *, check: bool, tol: float | None) -> int:
    """Replay cases; 0 where every value is within the tolerance, else 1."""
    manifest = json.loads((ROOT / "manifest.json").read_text("utf-8"))
    if check:
        check_files(manifest)
    if manifest["options"]["layout"] != "dynamic":
        raise CouldNotTellError("this script plays the dynamic layout only")
    golden = json.loads((ROOT / "cases" / "golden.json").read_text("utf-8"))
    tol = golden["tolerance"][manifest["options"]["dtype"]] if tol is None else tol
    recorded = [case for case in manifest["cases"] if case["file"]]
    chosen = [case for case in recorded if not names or case["name"] in names]
    if not chosen or any(name not in [case["name"] for case in recorded] for name in names):
        raise CouldNotTellError(f"cases are {', '.join(case['name'] for case in recorded) or 'not recorded'}")
    sessions = open_graphs(manifest)
    worst = 0.0
    for case in chosen:
        difference, place = play(manifest, sessions, case)
        worst = max(worst, difference)
        verdict = "ok      " if difference <= tol else "MISMATCH"
        print(f"{verdict} {case['name']:20} {difference:.3g}  {place}")
    print(f"{len(chosen)} cases, largest difference {worst:.3g}, tolerance {tol:g}")
    return 0 if worst <= tol else 1


def check_files(manifest: dict[str, Any]) -> None:
    """Refuse files that are missing or changed."""
    entries = [graph["file"] for graph in manifest["graphs"].values()] + manifest["weights"] + manifest["files"]
    for entry in entries + [case["file"] for case in manifest["cases"] if case["file"]]:
        path = ROOT / entry["path"]
        if not path.is_file():
            raise CouldNotTellError(f"{entry['path']} is missing")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                raise CouldNotTellError(
                    f"{entry['path']} is not the file that manifest.json names (--no-hash accepts it)"
                )


def open_graphs(manifest: dict[str, Any]) -> dict[str, Any]:
    """One ONNX Runtime session per graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return {
        kind: onnxruntime.InferenceSession(str(ROOT / graph["file"]["path"]), options, ["CPUExecutionProvider"])
        for kind, graph in manifest["graphs"].items()
    }


def play(manifest: dict[str, Any], sessions: dict[str, Any], case: dict[str, Any]) -> tuple[float, str]:
    """Largest difference of a case, and where it is; infinite for a wrong shape or a value that is not finite."""
    import numpy as np

    data = np.load(ROOT / case["file"]["path"], allow_pickle=False)
    mask, stop, worst, place = data["attention_mask"], 0, 0.0, ""
    past: dict[str, Any] = {}
    for call, tokens in enumerate(case["chunks"]):
        start, stop = stop, stop + tokens
        kind = case["first"] if call == 0 else "decode"
        feeds = {"attention_mask": mask[:, :stop]}
        feeds |= {name: data[name][:, start:stop] for name in ("input_ids", "position_ids")}
        session = sessions[kind]
        feeds |= host_inputs(manifest, feeds, past)
        ports = {port.name for port in session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in ports}
        for port in session.get_inputs():
            if port.name not in feeds:
                empty = (mask.shape[0], port.shape[1], 0, port.shape[3])
                feeds[port.name] = past[port.name] if past else np.zeros(empty, data["cache.0.key"].dtype)
        names = [port.name for port in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        for name, expected, live in expectations(manifest, data, start, stop):
            difference = distance(outputs[name], expected, live)
            if difference >= worst:
                worst, place = difference, f"call {call}, {name}"
        past = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    return worst, place


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
        if dtype == "bfloat16":
            raise CouldNotTellError("numpy has no bfloat16")
        made[item["name"]] = value.astype(dtype)
    return made


def expectations(manifest: dict[str, Any], data: Any, start: int, stop: int) -> Iterator[tuple[str, Any, Any]]:
    """Name, expected value and live slots of every output of one call."""
    options, mask = manifest["options"], data["attention_mask"]
    first = stop - 1 if options["logits"] == "last" else start
    yield "logits", data["logits"][:, first:stop], mask[:, first:stop] == 1
    for slot in manifest["model"]["slots"]:
        bounded = slot["window"] is not None and options["sliding_cache"] == "bounded"
        kept = min(stop, slot["window"] - 1) if bounded else stop
        live = mask[:, stop - kept : stop] == 1
        for part in ("key", "value"):
            rows = data[f"cache.{slot['slot']}.{part}"][:, :, stop - kept : stop]
            yield f"present.{slot['slot']}.{part}", rows, live


def distance(actual: Any, expected: Any, live: Any) -> float:
    """Largest difference over live slots; slots are axis 1 of logits and axis 2 of caches."""
    import numpy as np

    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    if actual.ndim == 4:
        actual, expected = np.moveaxis(actual, 2, 1), np.moveaxis(expected, 2, 1)
    difference = np.abs(actual[live].astype(np.float64) - expected[live].astype(np.float64))
    largest = float(difference.max(initial=0.0))
    return largest if np.isfinite(difference).all() else float("inf")


if __name__ == "__main__":
    sys.exit(main())
