"""An engine of your own, as kvparity sees it: takes a bundle, runs one graph at a time, says who it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime  # stands for your engine

from kvparity import Bundle, RunnerInfo


class Session:
    """Both graphs of a bundle, loaded."""

    def __init__(self, bundle: Bundle) -> None:
        self.info = RunnerInfo("mine", onnxruntime.__version__)
        self._graphs = {kind: onnxruntime.InferenceSession(bundle.graph_path(kind)) for kind in ("prefill", "decode")}

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``prefill`` or ``decode`` once: arrays by input name in, arrays by output name out."""
        session = self._graphs[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        """Free what was loaded."""
        self._graphs.clear()
