"""onnxruntime-ggml: a provider that runs parts of the graph on ggml's kernels, the rest on ONNX Runtime's own.

Its default rounds the weights to half precision without a word; this runner asks for float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.runners.base import RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, one_of, run_by_name, threads_of

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[onnxruntime_ggml]'"
TAKES = "the dynamic and static layouts"


def describe() -> RunnerInfo:
    """Versions of the provider and of the ONNX Runtime under it."""
    version = need("onnxruntime-ggml", INSTALL)
    return RunnerInfo("onnxruntime_ggml", version, {"onnxruntime": need("onnxruntime", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; settings ``weights`` (f32, or ggml's choice: default) and ``threads``."""
    only(options, "weights", "threads")
    info, threads = describe(), threads_of(options) or 1
    weights = one_of("onnxruntime_ggml", options, "weights", "f32", "default")
    import onnxruntime
    import onnxruntime_ggml

    given = {"device": "cpu", "threads": str(threads), **({} if weights == "default" else {"weights": weights})}

    def load(path: Path, entry: GraphEntry) -> Run:
        base = onnxruntime.SessionOptions()
        base.log_severity_level = 3
        base.intra_op_num_threads = threads
        return run_by_name(onnxruntime_ggml.InferenceSession(str(path), given, base), entry)

    settings = {**info.settings, **given, "weights": weights}
    return GraphSession(bundle, RunnerInfo("onnxruntime_ggml", info.version, settings), load)
