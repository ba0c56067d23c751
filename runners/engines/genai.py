"""ONNX Runtime GenAI's own loop: it keeps the caches, and is given the case's tokens instead of choosing its own.

It allocates caches by total length, so it takes bundles with ``--sliding-cache full``; decode.onnx serves whole cases.
What it loads is the folder that ``cli.py package --to genai`` writes, made of links.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.exporter.contract.files import link_file, scratch_folder
from kvparity.exporter.contract.packages import genai as package
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import first_line, refuse_unpacked
from kvparity.runners.engines._static import REFUSED

__all__ = ["INSTALL", "GenaiSession", "describe", "open_session"]

INSTALL = "pip install 'kvparity[genai]'"
TAKES = "the dynamic layout with --sliding-cache full"
_ADAPTED = "decode.onnx alone, caches kept by GenAI's loop; genai_config.json written for it"


def describe() -> RunnerInfo:
    """Versions of GenAI and of the ONNX Runtime under it."""
    version = need("onnxruntime-genai", INSTALL)
    return RunnerInfo("genai", version, {"onnxruntime": need("onnxruntime", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GenaiSession:
    """Load decode.onnx; setting ``type``, the model type that GenAI is told (decoder)."""
    only(options, "type")
    info = describe()
    refuse_unpacked(package.refuse, bundle)
    settings = {**info.settings, "type": options.get("type", package.TYPE)}
    return GenaiSession(bundle, RunnerInfo("genai", info.version, settings, _ADAPTED))


class GenaiSession:
    """GenAI's generator, fed one call after the other; a call that starts a history starts a new generator.

    Args:
        bundle: With sliding caches at full length.
        info: GenAI as it will run.
    """

    def __init__(self, bundle: Bundle, info: RunnerInfo) -> None:
        import onnxruntime_genai

        self.info = info
        self._genai, self._bundle = onnxruntime_genai, bundle
        self._folder = scratch_folder("kvparity-genai-")
        package.write(bundle, Path(self._folder.name), link_file, info.settings["type"])
        try:
            self._model = onnxruntime_genai.Model(self._folder.name)
        except Exception as error:
            raise EngineUnavailableError(f"genai cannot load decode.onnx: {first_line(error)}") from error
        self._generator: Any = None
        self._seen = 0

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Append the call's tokens; the pasts that are given are GenAI's own of the call before.

        Raises:
            TraceError: The call does not continue the one before, or has more than one row.
        """
        ids, total = inputs["input_ids"], inputs["attention_mask"].shape[1]
        if ids.shape[0] > 1:
            raise TraceError(f"{REFUSED}genai masks a batch by its pad tokens and takes its tokens once per generator")
        if total == ids.shape[1]:
            self._start()
        if total != self._seen + ids.shape[1]:
            raise TraceError(
                f"{REFUSED}genai keeps its own caches: it has seen {self._seen} tokens and cannot continue at "
                f"{total - ids.shape[1]}"
            )
        self._generator.append_tokens(np.ascontiguousarray(ids, np.int32))
        self._seen = total
        names = [port.name for port in self._bundle.graph(graph).spec.outputs]
        return {name: np.array(self._generator.get_output(package.port_name(name))) for name in names}

    def _start(self) -> None:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._bundle.model.max_position, batch_size=1)
        self._generator = self._genai.Generator(self._model, params)
        self._seen = 0

    def close(self) -> None:
        """Drop the model and its folder."""
        self._generator = self._model = None
        self._folder.cleanup()
