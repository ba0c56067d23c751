"""LoRA adapters in peft's format: which of them can be merged into weights, and the merge itself, which is peft's."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.extras import missing_package

__all__ = ["ADAPTER_CONFIG", "check_adapter", "merge_adapter", "read_adapter_config"]

ADAPTER_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OTHER_KINDS = {  # settings under which a LoRA adapter is more than a product added to a weight
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "layer_replication": "LoRA with replicated layers",
    "megatron_config": "LoRA of Megatron",
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's ``adapter_config.json``; empty where there is none that is a JSON object."""
    try:
        data = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def check_adapter(folder: Path) -> None:
    """Refuse what is no LoRA adapter that can be merged here.

    Raises:
        ExportError: No adapter, another kind, a pickle, or peft is not installed; says which.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ExportError(f"{folder}: not an adapter, {ADAPTER_CONFIG} is missing; expected a folder that peft saved")
    settings = read_adapter_config(folder)
    kind = str(settings.get("peft_type") or "nameless")
    others = [name for key, name in _OTHER_KINDS.items() if settings.get(key)]
    if kind.upper() != "LORA" or others:
        raise ExportError(
            f"{folder}: an adapter of kind {(others or [kind])[0]}; expected LoRA, the only kind that is merged here "
            "(peft's merge_and_unload may merge it: save the result with save_pretrained, and export that)"
        )
    if not (folder / _WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "; adapter_model.bin is a pickle, and reading one can run any code: save it again in peft" * pickled
        raise ExportError(f"{folder}: an adapter without {_WEIGHTS}{why}")
    if importlib.util.find_spec("peft") is None:
        raise ExportError(f"{folder}: to merge an adapter, {missing_package('peft')}")


def merge_adapter(model: Any, folder: Path) -> Any:
    """A model with a LoRA adapter merged into its weights by peft, in the dtype that they have.

    Where the embedding and the head are one weight and the adapter changes one of them, they are two afterwards, as
    they are while the adapter is not merged. A vocabulary that the adapter has enlarged is enlarged.

    Args:
        model: As ``from_pretrained`` gives it; changed in place.
        folder: The adapter, checked by :func:`check_adapter`.

    Raises:
        ValueError: The adapter belongs to another model; says which of its tensors shows that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to those who train
        merged = _merged(model, folder)
    tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    for part in (merged.config, merged.config.get_text_config(decoder=True)):
        part.tie_word_embeddings = tied
    return merged.eval()


def _merged(model: Any, folder: Path) -> Any:
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    _enlarge_vocabulary(model, folder)
    adapted = PeftModel(model, config)
    names = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    try:
        found = adapted.load_adapter(str(folder), "default", torch_device="cpu", key_mapping=names)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise ValueError(lines[0] if lines else str(error)) from error
    for words, tensors in (("has no place for", found.unexpected_keys), ("lacks", found.missing_keys)):
        if tensors:
            who = "the model" if tensors is found.unexpected_keys else "the adapter"
            raise ValueError(f"{who} {words} {min(tensors)} ({len(tensors)} such)")
    _separate(adapted)
    return adapted.merge_and_unload(safe_merge=True)


def _enlarge_vocabulary(model: Any, folder: Path) -> None:
    """Resize the embeddings where the adapter brings whole ones of another number of rows."""
    from safetensors import safe_open

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    paths = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    known = tuple(f".{path}{inner}.weight" for path in paths for inner in ("", ".base_layer"))
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        rows = {file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith(known)}
    if len(rows) == 1 and rows != {ends[0].weight.shape[0]}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _separate(adapted: Any) -> None:
    """Give every adapted layer a weight of its own: merging into a shared one would change both of its readers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    readers: dict[int, int] = {}
    for module in adapted.modules():
        for parameter in module._parameters.values():
            readers[id(parameter)] = readers.get(id(parameter), 0) + 1
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is not None and readers.get(id(weight), 0) > 1:
                module.get_base_layer().weight = type(weight)(weight.detach().clone(), requires_grad=False)
