"""Options of ``train``: how the tiny checkpoint is trained."""

from __future__ import annotations

from dataclasses import dataclass

from kvparity.exporter.contract.errors import ExportError

__all__ = ["TrainOptions"]


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults rebuild the shipped checkpoint in about half an hour on two cores.

    Attributes:
        steps: Optimizer steps; each sees `batch * block` new tokens.
        seed: Seed of the stories and of the initial weights.
        threads: CPU threads of PyTorch; another number gives other roundings, hence another checkpoint.
        batch: Rows per step.
        block: Tokens per row.
        long_block: Tokens per row of every `long_every`-th step (with proportionally fewer rows).
        long_every: One step in this many uses `long_block`; 0 never does.
        peak_rate: Learning rate after the warm-up; falls to a hundredth of it along a cosine.
        warmup: Steps of linear warm-up.
        weight_decay: On matrices other than embeddings.
        tokenizer_stories: Stories the tokenizer is trained on.
    """

    steps: int = 1000
    seed: int = 0
    threads: int = 2
    batch: int = 32
    block: int = 256
    long_block: int = 1024
    long_every: int = 4
    peak_rate: float = 5e-3
    warmup: int = 50
    weight_decay: float = 0.1
    tokenizer_stories: int = 4000

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 1:
            raise ExportError(f"train: steps is {self.steps} and threads {self.threads}, expected at least 1 of each")
        if self.long_every and (self.batch * self.block) % self.long_block:
            raise ExportError(
                f"train: batch * block = {self.batch * self.block} tokens do not divide into rows of long_block = "
                f"{self.long_block}: change one of them, or set long_every = 0"
            )
