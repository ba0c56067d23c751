"""The ``train`` command: a progress bar with the loss on stderr, the result on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["train_command"]


def train_command(out: Path, given: dict[str, Any]) -> None:
    """Train with the given options and print losses and a sample.

    Args:
        out: Folder of the checkpoint.
        given: Fields of :class:`exporter.tinygemma.options.TrainOptions` that were set on the command line.
    """
    from kvparity.exporter.tinygemma.options import TrainOptions
    from kvparity.exporter.tinygemma.training import StepInfo, train

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=None, loss=float("nan"))

        def show(step: StepInfo) -> None:
            bar.update(task, completed=step.step, total=step.steps, loss=step.loss)

        result = train(out, TrainOptions(**given), show)
    print(f"loss {result.final_loss:.4f}, held out {result.held_out_loss:.4f} nats per token, {result.seconds:.0f} s")
    print(f"sample  {result.sample}")
    print(f"checkpoint  {result.checkpoint}")
