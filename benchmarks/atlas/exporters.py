"""Exports in a peer's environment: ``python exporters.py NAME WORK CHECKPOINT…`` writes WORK/NAME/MODEL of each.

Exporters share the files of benchmarks/peers: what an environment needs, and how it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
Export = Callable[[Path, Path], None]


def _peer(name: str, *given: Any) -> Export:
    def export(checkpoint: Path, folder: Path) -> None:
        importlib.import_module(name).export(checkpoint, folder, *given)

    return export


def _torch_onnx(*, bounded: bool) -> Export:
    """``torch.onnx.export`` of the model around a DynamicCache: what a tutorial writes."""

    def export(checkpoint: Path, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()

        class Decoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
                cache = DynamicCache(config=model.config) if bounded else DynamicCache()
                for layer in range(len(past) // 2):
                    cache.update(past[2 * layer], past[2 * layer + 1], layer)
                names = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
                made = self.model(**names, past_key_values=cache, use_cache=True)
                layers = made.past_key_values.layers
                return made.logits, *(part for layer in layers for part in (layer.keys, layer.values))

        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        count, batch, tokens, rows = config.num_hidden_layers, 2, 3, 5
        pasts = [torch.randn(batch, heads, rows, size) for _ in range(2 * count)]
        names = [f"{layer}.{part}" for layer in range(count) for part in ("key", "value")]
        ids = torch.arange(3, 3 + batch * tokens).reshape(batch, tokens)
        mask, positions = torch.ones(batch, rows + tokens, dtype=torch.int64), torch.arange(rows, rows + tokens)
        dim = torch.export.Dim
        new, total = {0: dim("batch"), 1: dim("tokens")}, {0: dim("batch"), 1: dim("total")}
        shapes = (new, total, new, tuple({0: dim("batch"), 2: dim("rows")} for _ in pasts))
        folder.mkdir(parents=True)
        torch.onnx.export(
            Decoder(),
            (ids, mask, positions[None].repeat(batch, 1), *pasts),
            str(folder / "model.onnx"),
            dynamo=True,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=shapes,
        )

    return export


def _transformers(*, chunks: bool, fusions: str | None = None, static: bool = False) -> Export:
    """The OnnxExporter of transformers in one of its modes."""

    def export(checkpoint: Path, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
        ids = torch.arange(3, 23).reshape(2, 10)
        how = {"generation_config": GenerationConfig(cache_implementation="static", max_length=64)} if static else {}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        config = OnnxConfig(dynamic=True, ort_fusions=fusions)
        made = OnnxExporter().export_for_generation(model, inputs, config, multi_token_decode=chunks, **how)
        made.save_pretrained(str(folder))

    return export


def _mobius(*given: str) -> Export:
    def export(checkpoint: Path, folder: Path) -> None:
        words = [sys.executable, "-m", "mobius", "build", "--config", str(checkpoint), str(folder), "--dtype", "f32"]
        _run([*words, *given])

    return export


def _genai(precision: str) -> Export:
    def export(checkpoint: Path, folder: Path) -> None:
        words = [sys.executable, str(HERE.parent / "peers" / "genai_builder.py"), "-i", str(checkpoint)]
        _run([*words, "-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(folder.parent / "cache")])

    return export


def _optimum(checkpoint: Path, folder: Path) -> None:
    """Optimum reads configs as transformers 4 wrote them."""
    from models import older_names

    older = folder.parent / f"{folder.name}-older"
    older.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.iterdir():
        if path.name != "config.json" and not (older / path.name).exists():
            (older / path.name).symlink_to(path.resolve())
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (older / "config.json").write_text(json.dumps(older_names(config)), encoding="utf-8")
    words = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(older)]
    _run([*words, "--task", "text-generation-with-past", str(folder)])


EXPORTERS: dict[str, tuple[str, Export]] = {  # name: the peer whose environment it runs in, and how
    "torch.onnx, growing caches": ("torch_eager", _torch_onnx(bounded=False)),
    "torch.onnx, bounded caches": ("torch_eager", _torch_onnx(bounded=True)),
    "transformers, one token a step": ("transformers_onnx", _transformers(chunks=False)),
    "transformers, chunks": ("transformers_onnx", _transformers(chunks=True)),
    "transformers, fused for the CPU": ("transformers_onnx", _transformers(chunks=True, fusions="cpu")),
    "transformers, static cache": ("transformers_onnx", _transformers(chunks=False, static=True)),
    "mobius, portable": ("mobius_onnx", _mobius()),
    "mobius, CPU": ("mobius_onnx", _mobius("--ep", "cpu", "--runtime", "ort-genai")),
    "GenAI builder, fp32": ("genai_builder", _genai("fp32")),
    "GenAI builder, int4": ("genai_builder", _genai("int4")),
    "Optimum": ("optimum_onnx", _optimum),
}


def _run(words: list[str]) -> None:
    """A program of the environment; its own last line of error is the reason."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        from processes import reason

        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(reason(lines or [f"ended with code {done.returncode}"]))


def main(name: str, work: Path, checkpoints: list[Path]) -> None:
    """Export each checkpoint; what fails leaves ``FOLDER.failed`` with its reason."""
    for checkpoint in checkpoints:
        folder = work / slug(name) / checkpoint.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        failed = folder.with_suffix(".failed")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                EXPORTERS[name][1](checkpoint, folder)
            failed.unlink(missing_ok=True)
        except Exception as error:  # an exporter may raise anything
            traceback.print_exc()
            line = next((line for line in str(error).splitlines() if line.strip()), "")
            failed.write_text(f"{type(error).__name__}: {line}".removeprefix("RuntimeError: "), encoding="utf-8")


def slug(name: str) -> str:
    """A folder's name."""
    return name.replace(",", "").replace(" ", "-").lower()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(item) for item in sys.argv[3:]])
