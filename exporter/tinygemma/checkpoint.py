"""Writes the tiny checkpoint: the `hf` folder, the loss curve and the model card; all of it or nothing."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

__all__ = ["LossPoint", "replacing", "save_curve", "save_hf"]

LossPoint = tuple[int, float, float]
"""(step, learning rate, training loss in nats per token)."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `out`; on success its entries replace those of the same name in `out`.

    Entries of `out` with other names stay. When the body raises, `out` is untouched and the temporary folder is gone.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        old.mkdir()
        yield new
        out.mkdir(exist_ok=True)
        for entry in sorted(new.iterdir()):
            _swap(entry, out / entry.name, old / entry.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Moves `target` (if any) to `old` and `new` to `target`; puts the old one back if that fails."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def save_hf(folder: Path, model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes config, generation config, float32 weights and tokenizer in the layout `from_pretrained` reads.

    The tied head is stored once, as `model.embed_tokens.weight`. `config.json` spells out `global_head_dim` and
    `num_global_key_value_heads`: transformers leaves them out when they equal the sliding layers' values, and a reader
    that fills in Gemma 4's defaults would take 512 instead of 32.
    """
    folder.mkdir(parents=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {"architectures": ["Gemma4ForCausalLM"], "global_head_dim": 32, "num_global_key_value_heads": 1}
    _write_json(folder / "config.json", config)
    model.generation_config.save_pretrained(folder)
    weights = {
        name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def save_curve(folder: Path, curve: Sequence[LossPoint]) -> None:
    """Writes `loss.csv` (every step) and `loss.png`, byte for byte the same for the same curve."""
    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "learning_rate", "loss"])
        writer.writerows([step, f"{rate:.6g}", f"{loss:.4f}"] for step, rate, loss in curve)
    figure = Figure(figsize=(7, 4), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([step for step, _, _ in curve], [loss for _, _, loss in curve], linewidth=0.8)
    axes.set(xlabel="step", ylabel="training loss (nats per token)", title="tinygemma4text3m", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", metadata={"Software": None})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
