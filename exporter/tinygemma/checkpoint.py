"""Writes the tiny checkpoint: the `hf` folder, the loss curve and the model card; all of it or nothing."""

from __future__ import annotations

import csv
import importlib.util
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.files import swap, writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

__all__ = ["LossPoint", "replacing", "require_plotting", "save_curve", "save_hf"]

LossPoint = tuple[int, float, float]
"""(step, learning rate, training loss in nats per token)."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `out`; on success its entries replace those of the same name in `out`.

    Entries of `out` with other names stay. When the body raises, `out` is untouched and the temporary folder is gone.
    A second process that writes there waits.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"train: {out} is a file, expected a folder or nothing: choose another folder")
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out) as new:
        new.mkdir()
        yield new
        out.mkdir(exist_ok=True)
        for entry in sorted(new.iterdir()):
            swap(entry, out / entry.name)


def save_hf(folder: Path, model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes config, generation config, float32 weights and tokenizer in the layout `from_pretrained` reads.

    The tied head is stored once, as `model.embed_tokens.weight`. `config.json` spells out `global_head_dim` and
    `num_global_key_value_heads`, as the card and the released Gemma 4 models do: transformers 5.24 writes an internal
    `per_layer_config` in their place, and a reader that does not know it fills in Gemma 4's default of 512.
    """
    folder.mkdir(parents=True)
    config = json.loads(model.config.to_json_string())
    config.pop("per_layer_config", None)
    config |= {"architectures": ["Gemma4ForCausalLM"], "dtype": "float32"}
    config |= {"global_head_dim": config["head_dim"], "num_global_key_value_heads": config["num_key_value_heads"]}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(config))
    weights = {
        name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner only
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The class name of transformers 4 and 5 alike; version 5 would write "TokenizersBackend", unknown to version 4.
    _write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _generation_config(config: dict[str, object]) -> dict[str, object]:
    """Greedy, with the special ids of the model's config."""
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**ids, "do_sample": False, "transformers_version": config["transformers_version"], "use_cache": True}


def require_plotting() -> None:
    """Raises ExportError if the loss curve could not be drawn; asked before the training, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError(
            "train: matplotlib, which draws the loss curve, is not installed: pip install matplotlib (extra `train`)"
        )


def save_curve(folder: Path, curve: Sequence[LossPoint]) -> None:
    """Writes `loss.csv` (every step) and `loss.png`, byte for byte the same for the same curve."""
    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "learning_rate", "loss"])
        writer.writerows([step, f"{rate:.6g}", f"{loss:.4f}"] for step, rate, loss in curve)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([step for step, _, _ in curve], [loss for _, _, loss in curve], linewidth=0.8)
    axes.set(xlabel="step", ylabel="training loss (nats per token)", title="tinygemma4text3m", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", metadata={"Software": None})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
