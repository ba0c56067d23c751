"""Training: the same bytes twice, all or nothing on disk, and no trace left in the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.tinygemma.options import TrainOptions
from kvparity.exporter.tinygemma.training import StepInfo, _rate, train

TINY = TrainOptions(steps=2, batch=2, block=16, long_block=32, long_every=2, warmup=1, tokenizer_stories=300, threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("train") / "tiny"
    train(out, TINY)
    return out


def test_training_writes_checkpoint_curve_and_card(trained: Path) -> None:
    assert set(contents(trained)) == {
        "README.md",
        "loss.csv",
        "loss.png",
        "hf/config.json",
        "hf/generation_config.json",
        "hf/model.safetensors",
        "hf/tokenizer.json",
        "hf/tokenizer_config.json",
    }
    assert [path.name for path in trained.parent.iterdir()] == ["tiny"]


def test_training_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "again", TINY)
    assert contents(tmp_path / "again") == contents(trained)


def test_another_seed_gives_other_weights(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", replace(TINY, seed=1))
    assert (tmp_path / "other/hf/model.safetensors").read_bytes() != (trained / "hf/model.safetensors").read_bytes()


def test_a_failure_midway_leaves_the_old_checkpoint_alone(trained: Path) -> None:
    before = contents(trained)

    def fail(info: StepInfo) -> None:
        if info.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trained, replace(TINY, seed=5), fail)
    assert contents(trained) == before
    assert [path.name for path in trained.parent.iterdir()] == ["tiny"]


def test_training_replaces_the_old_checkpoint_and_keeps_other_entries(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    (out / "hf").mkdir(parents=True)
    (out / "hf" / "stale.bin").write_text("stale")
    (out / "notes.txt").write_text("mine")
    train(out, TINY)
    assert "hf/stale.bin" not in contents(out)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_file_in_the_way_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("")
    with pytest.raises(ExportError, match="is a file, expected a folder"):
        train(tmp_path / "tiny", TINY)


def test_every_step_is_reported(tmp_path: Path) -> None:
    seen: list[StepInfo] = []
    result = train(tmp_path / "tiny", TINY, seen.append)
    assert [(info.step, info.steps) for info in seen] == [(1, 2), (2, 2)]
    assert result.final_loss == pytest.approx(sum(info.loss for info in seen) / 2)
    assert result.checkpoint == tmp_path / "tiny" / "hf"
    assert len((tmp_path / "tiny/loss.csv").read_text().splitlines()) == 3


def test_the_process_keeps_its_torch_settings(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(tmp_path / "tiny", TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lower peak_rate"):
        train(tmp_path / "tiny", replace(TINY, peak_rate=float("inf")))
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_rises_then_falls() -> None:
    options = TrainOptions()
    rates = [_rate(step, options) for step in range(1, options.steps + 1)]
    assert rates.index(max(rates)) == options.warmup - 1
    assert max(rates) == options.peak_rate
    assert rates[-1] == pytest.approx(options.peak_rate / 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps is 0"), ({"threads": 0}, "threads 0"), ({"long_block": 48}, "do not divide")],
)
def test_impossible_options_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        replace(TINY, **change)
