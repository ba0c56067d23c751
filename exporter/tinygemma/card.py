"""The model card that `train` writes beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

from kvparity.exporter.tinygemma.config import LAYER_SCALARS, TOTAL_PARAMETERS
from kvparity.exporter.tinygemma.options import TrainOptions

__all__ = ["write_card"]

_CARD = """# tinygemma4text3m

A tiny Gemma 4 text model (`Gemma4ForCausalLM`, {total:,} parameters) trained for checking exporters and inference
engines. It writes small stories; it is not meant to be a good language model.

| | |
|---|---|
| layers | 6, pattern `ssFssF` (s sliding, window 128; F full) |
| width, MLP | 160, 640 (`gelu_pytorch_tanh`) |
| heads | 5 query, 1 key-value, dimension 32 in sliding and full layers |
| per-layer inputs | width 24 |
| vocabulary | 1,024 (byte-level BPE; `<bos>` 0, `<eos>` 1, `<pad>` 2), tied head |
| positions | 1,024, all of them trained |
| weights | float32, `hf/model.safetensors`, the tied head stored once |

The `layer_scalar` buffers are {scalars}: not trained, and not ones, so that an exporter that
drops them is caught. The tokenizer puts `<bos>` in front of every text; training did the same.

## Training

`python cli.py train` rebuilds this folder; seeds and threads are fixed. Two short runs give the same bytes (tested);
a full run was not repeated. The text comes from
the project's own story grammar (`exporter/tinygemma/corpus.py`), seed {seed}, seen once.

| steps | tokens per step | rows | learning rate | final training loss | held-out loss |
|---|---|---|---|---|---|
| {steps:,} | {tokens:,} | {rows} | {rate:g} peak, cosine, {warmup} warm-up | {final:.4f} | {held_out:.4f} |

Losses are in nats per token: the mean of the last 50 steps, and stories of another seed. The curve is in `loss.csv` and
below.

![loss](loss.png)

## Sample

Greedy, 80 tokens after "Once upon":

> {sample}

Stories are readable but forgetful. The hero's name is repeated rightly (46 of 46 on unseen stories); the keepsake,
the grown-up and a list told early are guessed again later, near or far: the right colour gets a probability of about
0.1, no more than a guess. Parity checks do not depend on it; do not use this model to judge recall over long contexts.

## Use

```python
from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast.from_pretrained("artifacts/tinygemma4text3m", subfolder="hf")
model = Gemma4ForCausalLM.from_pretrained("artifacts/tinygemma4text3m", subfolder="hf")
output = model.generate(**tokenizer("Once upon", return_tensors="pt"), max_new_tokens=80, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```
"""


def write_card(path: Path, options: TrainOptions, final_loss: float, held_out_loss: float, sample: str) -> None:
    """Writes the card in Markdown; no times and no places, so the same training gives the same bytes."""
    tokens = options.batch * options.block
    rows = f"{options.batch} × {options.block}"
    if options.long_every:
        rows += f", every {options.long_every}th step {tokens // options.long_block} × {options.long_block:,}"
    text = _CARD.format(
        total=TOTAL_PARAMETERS,
        scalars=", ".join(map(str, LAYER_SCALARS)),
        seed=options.seed,
        steps=options.steps,
        tokens=tokens,
        rows=rows,
        rate=options.peak_rate,
        warmup=options.warmup,
        final=final_loss,
        held_out=held_out_loss,
        sample=sample.replace("\n", "\n>\n> "),
    )
    path.write_text(text, encoding="utf-8")
