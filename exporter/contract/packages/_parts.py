"""What the package layouts share: refusals, the tokenizer's files, JSON, and the words of a package's README."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kvparity.exporter.contract.bundle import Bundle, inside
from kvparity.exporter.contract.chat_templates import TEMPLATE_FILE, chat_template
from kvparity.exporter.contract.errors import PackageError
from kvparity.exporter.contract.model_files import TOKENIZER_FILES, end_tokens, read_settings, unlimit_tokenizer
from kvparity.exporter.contract.spec import ModelSpec

__all__ = [
    "Place",
    "layer_types",
    "made_from",
    "place_tokenizer",
    "refuse_no_rows",
    "refuse_others",
    "state_kinds",
    "token_ids",
    "tokenizer_files",
    "write_json",
]

Place = Callable[[Path, Path], None]  # puts a file of the bundle at a path of the package


def refuse_others(tool: str, bundle: Bundle, option: str, *taken: str) -> None:
    """Refuse a bundle whose ``layout``, ``profile`` or ``dtype`` a tool cannot take.

    Raises:
        PackageError: It is none of ``taken``.
    """
    found = getattr(bundle.options, option)
    if found not in taken:
        raise PackageError(
            f"{tool} takes the {option} {' or '.join(taken)} only, and this bundle's is {found}; "
            f"export with --{option} {taken[0]}"
        )


def refuse_no_rows(tool: str, bundle: Bundle) -> None:
    """Refuse a bundle that keeps states alone.

    Raises:
        PackageError: Names what its cache slots hold.
    """
    model = bundle.model
    if not any(slot.kv_heads for slot in model.slots):
        parts = " and ".join(sorted({part for slot in model.slots for part in slot.parts}))
        raise PackageError(
            f"{tool} counts tokens by the rows of keys, and {model.model_type} keeps {parts} alone; "
            "load the bundle's own graphs with ONNX Runtime"
        )


def layer_types(model: ModelSpec, state: str) -> list[str]:
    """What tools call the layers that own a cache slot, in the order of slots: ``full_attention``, or ``state``."""
    return ["full_attention" if slot.kv_heads else state for slot in model.slots]


def state_kinds(model: ModelSpec) -> frozenset[str]:
    """Parts that a model keeps beside keys and values."""
    return frozenset(state.part for slot in model.slots for state in slot.states)


def place_tokenizer(bundle: Bundle, folder: Path, place: Place) -> None:
    """Put the tokenizer's files that a bundle vouches for into a package, with one chat template: the default.

    Tools read the template from a file or from the settings, and know no other place and no list of templates.

    Raises:
        BundleError: There are several templates and none is the default.
    """
    for name in tokenizer_files(bundle):
        place(inside(bundle.root, name), folder / name)
    if not (folder / "tokenizer.json").is_file():
        return
    unlimit_tokenizer(folder)
    template = chat_template(bundle.root)
    if template is not None:
        path, settings = folder / "tokenizer_config.json", read_settings(folder / "tokenizer_config.json")
        for old in (path, folder / TEMPLATE_FILE, folder / "chat_template.json"):
            old.unlink(missing_ok=True)  # it may be a link to the bundle's
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        write_json(path, {**settings, "chat_template": template})


def tokenizer_files(bundle: Bundle) -> tuple[str, ...]:
    """Names of the tokenizer's files in a bundle."""
    listed = {entry.path for entry in bundle.manifest.files}
    return tuple(name for name in TOKENIZER_FILES if name in listed)


def token_ids(bundle: Bundle) -> dict[str, int | list[int]]:
    """The tokens that begin, end and pad a text, by their names in every tool's settings; those that there are.

    A model without a padding token gets its first end token, as transformers has it: tools fill it in with token 0
    otherwise, which may be a word, and mask that word in a batch.
    """
    model, ends = bundle.model, sorted(end_tokens(bundle))
    pad = model.pad_token_id if model.pad_token_id is not None else next(iter(ends), None)
    found = {"bos_token_id": model.bos_token_id, "eos_token_id": ends or None, "pad_token_id": pad}
    return {name: value for name, value in found.items() if value is not None}


def made_from(bundle: Bundle) -> str:
    """What a package was made from, in a sentence."""
    manifest, options = bundle.manifest, bundle.options
    revision = f" at {manifest.revision}" if manifest.revision else ""
    merged = manifest.checkpoint.adapter if manifest.checkpoint else None
    adapter = f" with the adapter {PurePosixPath(merged).name}" if merged else ""
    weights = options.dtype if options.quantize == "none" else f"{options.dtype} and {options.quantize}"
    made = ", ".join(f"{name} {manifest.versions[name]}" for name in ("kvparity", "torch") if name in manifest.versions)
    return (
        f"Made from {manifest.source}{revision}{adapter} ({bundle.model.architecture}, "
        f"{bundle.model.parameters:,} parameters, "
        f"{weights}) by {made or 'kvparity'}: profile {options.profile}, {options.layout} layout, sliding caches "
        f"{options.sliding_cache}."
    )


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write settings; the same settings give the same bytes."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
