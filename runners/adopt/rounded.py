"""The reference of a package whose weights are rounded: the checkpoint's model with what the package stores.

It separates conversion from quantisation: a package whose graph is right matches this model, and what this model loses
against the checkpoint's is what rounding costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.manifest import Manifest
from kvparity.runners.adopt.audit import stored_values
from kvparity.runners.diff.audit import Audit

__all__ = ["rounded_reference", "rounding_cost"]

_PLAIN = ("float16", "bfloat16", "float32", "float64")


def rounded_reference(
    graphs: Sequence[Path],
    audit: Audit,
    reference: Any,
    manifest: Manifest,
    checkpoint: CheckpointFiles,
    folder: Path,
) -> Callable[[str], Any] | None:
    """Opens PyTorch with the package's own rounded weights, in a dtype given by name.

    Args:
        graphs: The package's ``.onnx`` files.
        audit: What they store.
        reference: The checkpoint's model in float32.
        manifest: Of the adopted bundle.
        checkpoint: What the model is loaded from.
        folder: The adopted bundle.

    Returns:
        None where no weight is rounded further than the dtype that the graphs compute in.
    """
    codings = set(audit.codings) - {manifest.model.dtype}
    if not codings:
        return None
    rows = [row for row in audit.weights if row.state == "rounded" and row.coding in codings]
    values = stored_values(graphs, reference, {row.name for row in rows})

    def opened(dtype: str) -> Any:
        import torch

        from kvparity.runners.engines.torch_eager import TorchSession
        from kvparity.runners.reference.model import load_reference

        model = load_reference(checkpoint, manifest.options.dtype, folder, lift=dtype == "float64")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, array in values.items():
                parameters[name].copy_(torch.from_numpy(np.array(array)).to(parameters[name].dtype))
        return TorchSession(model, manifest.model)

    return opened


def rounding_cost(reference: Any, opened: Callable[[str], Any], case: Case) -> str:
    """What rounding does to the logits of a prompt, in words: agreement of the likeliest token, and KL divergence.

    Args:
        reference: The checkpoint's model in float32.
        opened: See :func:`rounded_reference`.
        case: Gives the vocabulary's range; 128 seeded tokens are run.
    """
    import torch

    size = reference.get_output_embeddings().weight.shape[0]
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, size, (1, 128)))
    with torch.no_grad():
        wanted, found = (model(input_ids=ids).logits[0].double() for model in (reference, opened("float32").model))
    logs = [torch.log_softmax(logits, dim=-1) for logits in (wanted, found)]
    divergence = float((logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1).mean())
    same = float((wanted.argmax(dim=-1) == found.argmax(dim=-1)).double().mean())
    return (
        f"with the package's own weights PyTorch agrees on the likeliest token at {same:.0%} of 128 seeded tokens, "
        f"KL {divergence:.2g} nats a token; references are PyTorch with these weights"
    )
