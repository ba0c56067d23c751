"""After recording: one case through the graphs, so that a weight in the wrong place fails the export itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, Recording
from kvparity.exporter.contract.errors import BundleError, EngineUnavailableError
from kvparity.exporter.contract.vectors import expected_outputs
from kvparity.runners.decode.play import play
from kvparity.runners.engines import ort

__all__ = ["check_logits"]

_FLOAT32, _ROUNDED = 1e-2, 0.5  # of the largest logit; another head is off by more than that, rounding by far less


def check_logits(bundle: Bundle, recording: Recording) -> None:
    """Compare logits of the shortest recorded case with its reference: every column of the head, at a few positions.

    This is no verdict on rounding, which is what ``compare`` is for: it tells another weight from the right one. It is
    left out where ONNX Runtime has no kernels for the graphs here, as for another provider's types.

    Args:
        bundle: The bundle being written, graphs and weights in place.
        recording: What was recorded for it.

    Raises:
        BundleError: The graphs do not compute what the checkpoint's own class computes.
    """
    made = replace(bundle.manifest, cases=recording.cases, sequences=recording.sequences, head=recording.head)
    bundle = Bundle(bundle.root, made)
    entries = [entry for entry in recording.cases if bundle.manifest.is_recorded(entry)]
    if not entries or bundle.options.provider != "cpu" or bundle.options.dtype == "bfloat16":
        return
    vectors = bundle.vectors(min(entries, key=lambda entry: (entry.batch, entry.total < 2, entry.total)).name)
    try:
        session = ort.open_session(bundle, {"threads": "1", "memory": "low"})
    except EngineUnavailableError:
        return
    rounded = bundle.options.dtype != "float32" or bundle.options.quantize != "none"
    last = bundle.options.logits == "last"
    for result in play(bundle, session, vectors.case):
        wanted = expected_outputs(vectors.arrays, result.step, bundle.model.slots, bundle.options, last=last)[
            "logits"
        ].astype(np.float64)
        found = result.outputs["logits"].astype(np.float64)
        live = vectors.case.mask[:, result.step.stop - wanted.shape[1] : result.step.stop] == 1
        if not np.isfinite(wanted[live]).all():
            raise BundleError(
                f"PyTorch's own logits of case {vectors.case.name} are not finite in {bundle.options.dtype}: the "
                "weights hold NaN or infinity, or values overflow; mend the checkpoint, or choose another --dtype"
            )
        size = float(np.abs(wanted[live]).max(initial=0.0))
        off = float(np.abs(wanted - found)[live].max(initial=0.0)) if found.shape == wanted.shape else float("inf")
        if not off <= (_ROUNDED if rounded else _FLOAT32) * size:
            raise BundleError(
                f"the graphs do not compute what {bundle.model.architecture} computes from the checkpoint: logits of "
                f"case {vectors.case.name} are up to {off:.3g} off, and the largest is {size:.3g}; this is "
                "a fault of the export, and nothing was written"
            )
