"""Checkpoints as they lie about, drawn at random: the bundle's graphs compute what ``from_pretrained`` computes.

Nothing of the referee judges: the graphs run in plain ONNX Runtime (:mod:`tests.plain_judge`), and so does the bundle's
folder in transformers, as the model that its files make of it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions
from tests.draws import Draw
from tests.families import draw_weights, small_config
from tests.plain_judge import graph_logits

__all__ = ["check_checkpoint", "write_checkpoint"]

_EXACT = 3e-5  # of the largest logit, in float32
_HALF = 4.0  # times transformers' own error in the half type, root mean square
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_WRAPPERS: dict[str, dict[str, Any]] = {
    "llava": {"vision_config": {"model_type": "clip_vision_model", **_VISION, "image_size": 28, "patch_size": 14}},
    "mistral3": {"vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 8, "image_size": 28}},
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "patch_size": 14}
    },
}


def check_checkpoint(draw: Draw) -> str:
    """Export a drawn checkpoint and compare; ``"match"``, or the words of a refusal.

    Raises:
        AssertionError: A difference, or words of more than one line.
    """
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    with tempfile.TemporaryDirectory(prefix="kvparity-fuzz-") as name:
        folder = write_checkpoint(draw, Path(name) / "hf")
        model, reason = _loaded(folder, "float32")
        refused = ""
        try:
            bundle = export(
                resolve(str(folder)),
                Path(name) / "bundle",
                ExportOptions(**draw["options"]),
                record=record_cases if draw["recorded"] else None,
                limit=draw["limit"],
                in_process=True,
            )
        except ExportError as error:
            refused = str(error)
        if refused:
            assert "\n" not in refused, f"more than one line: {refused}"
            assert not list(Path(name).glob("*bundle*")), "a refused export left something behind"
            return refused
        assert model is not None, f"exported, and transformers refuses it: {reason}"
        _compare(bundle.root, model, _loaded(folder, draw["options"]["dtype"])[0], draw["options"]["dtype"])
        if draw["options"]["dtype"] == "float32":
            again, reason = _loaded(bundle.root, "float32")
            assert again is not None, f"transformers does not load the bundle's folder: {reason}"
            _compare(bundle.root, again, None, "float32")
    return "match"


def _compare(bundle: Path, model: Any, half: Any, dtype: str) -> None:
    ids = np.random.default_rng(5).integers(3, model.config.get_text_config().vocab_size, 16)
    wanted = _logits(model, ids)
    off = graph_logits(bundle, ids, 7).astype(np.float64) - wanted
    if dtype == "float32":
        worst, limit = float(np.abs(off).max()), _EXACT * max(1.0, float(np.abs(wanted).max()))
    else:  # a top-k that falls the other way makes a position differ by much, here as there
        own = _logits(half, ids) - wanted
        worst, limit = float(np.median(np.abs(off))), _HALF * float(np.median(np.abs(own))) + 1e-3
    assert worst <= limit, f"logits: off by {worst}, limit {limit}"


def _logits(model: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
    return np.asarray(found.float().numpy(), np.float64)


def _loaded(folder: Path, dtype: str) -> tuple[Any, str]:
    """What a user of transformers has after ``from_pretrained``, or why it has nothing, or weights at random."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
        model, info = kind.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:  # whatever transformers raises
        return None, f"{type(error).__name__}: {error}"
    if info["missing_keys"]:
        return None, f"{sorted(info['missing_keys'])[0]} is drawn at random"
    return model.eval(), ""


def write_checkpoint(draw: Draw, folder: Path) -> Path:
    """Write a drawn checkpoint: its config as drawn, its weights in shards, with a head and ids of their own."""
    import torch
    from safetensors.torch import load_file
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    drawn = draw["checkpoint"]
    config = small_config(
        draw["model_type"], {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 1} | draw["config"]
    )
    kind: Any = AutoModelForCausalLM
    if drawn["wrapper"]:
        kind, tied = AutoModelForImageTextToText, config.tie_word_embeddings
        around = {**_WRAPPERS[drawn["wrapper"]], "image_token_index": 3, "tie_word_embeddings": tied}
        config = CONFIG_MAPPING[drawn["wrapper"]](text_config=config.to_dict(), **around)
    torch.manual_seed(0)
    model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    draw_weights(model, 0)
    model.to(getattr(torch, drawn["stored"])).save_pretrained(folder)
    weights = _with_head(load_file(folder / "model.safetensors"), drawn["head"])
    if drawn["extra"]:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if drawn["missing"]:
        del weights[sorted(name for name in weights if "norm" in name)[0]]
    _save(weights, folder, drawn["shards"], drawn["stale"])
    _edit_config(folder / "config.json", drawn)
    if not drawn["generation_config"]:
        (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def _with_head(weights: dict[str, Any], head: str) -> dict[str, Any]:
    import torch

    embedding = next(name for name in weights if name.endswith("embed_tokens.weight"))
    own = next((name for name in weights if name.endswith("lm_head.weight")), None)
    if head == "absent":
        return {name: tensor for name, tensor in weights.items() if name != own}
    if head in ("same", "other"):
        noise = torch.randn(weights[embedding].shape, generator=torch.Generator().manual_seed(7))
        table = weights[embedding].clone()
        name = own or embedding.replace("model.embed_tokens", "lm_head").replace("embed_tokens", "lm_head")
        weights[name] = table if head == "same" else (table + 0.7 * noise).to(table.dtype)
    return weights


def _save(weights: dict[str, Any], folder: Path, shards: int, stale: str) -> None:
    """Write shards and their index; ``stale`` leaves an older file, index or copy of a tensor beside them."""
    import torch
    from safetensors.torch import save_file

    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(names)}
    if shards == 1 and stale != "index":
        files = dict.fromkeys(names, "model.safetensors")
    if shards > 1 or stale == "index":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for file in sorted({*files.values()}):
        held = {name: weights[name].contiguous() for name in names if files[name] == file}
        if stale == "copy" and shards > 1:  # an older copy of another shard's tensor
            other = next(name for name in names if files[name] != file)
            held[other] = torch.zeros_like(weights[other])
        save_file(held, folder / file, metadata={"format": "pt"})
    if stale == "index" and shards == 1:  # merged in place: the index and its shard are of an earlier model
        save_file({name: weights[name].contiguous() for name in names}, folder / "model.safetensors", {"format": "pt"})
        for file in {*files.values()}:
            save_file({name: torch.zeros_like(weights[name]) for name in names}, folder / file, {"format": "pt"})


def _edit_config(path: Path, drawn: Draw) -> None:
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text |= drawn["ids"]
    for part in (config, text):
        for key in ("dtype", "torch_dtype"):
            part.pop(key, None)
    if drawn["named"]:
        config[drawn["named"]] = drawn["stored"]
    if drawn["tied"] is not None:
        config["tie_word_embeddings"] = drawn["tied"]
    if drawn["old_rope"] and "rope_parameters" in text and "rope_theta" in text["rope_parameters"]:
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = None if rope.get("rope_type") == "default" else {"type": rope["rope_type"], **rope}
    path.write_text(json.dumps(config))
