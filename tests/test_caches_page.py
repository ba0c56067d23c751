"""The code of docs/caches.md does what the page says, before and past the window."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from tests.mutants.subject import WINDOW

ROUNDING = 1e-4  # float32 on logits of the toy model: 3e-5; a wrong row is 1e-2 and more
PAGE = Path(__file__).resolve().parents[1] / "docs" / "caches.md"
DRAFT = 4
PLACES = (3, WINDOW - 1, WINDOW, WINDOW + 3, 5 * WINDOW)


@pytest.fixture(scope="module")
def page(subject: Bundle) -> dict[str, Any]:
    """What the page's code defines, on the toy bundle."""
    names: dict[str, Any] = {"bundle": subject.root}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, names)
    return names


def text(seed: int, count: int = 6 * WINDOW) -> Any:
    return np.random.default_rng(seed).integers(3, 96, (1, count))


def ones(count: int) -> Any:
    return np.ones((1, count), np.int64)


def whole(page: dict[str, Any], ids: Any) -> Any:
    """Logits of every position, in one call."""
    return page["call"](ids, ones(ids.shape[1]), page["empty"](1))[0]


def off(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max())


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("accepted", [0, 2, 4])
def test_splice_and_replay_are_exact_and_a_crop_that_reaches_too_far_is_refused(
    page: dict[str, Any], at: int, accepted: int
) -> None:
    ids = text(1)
    wanted, call, stop = whole(page, ids), page["call"], at + accepted
    _, before = call(ids[:, :at], ones(at), page["empty"](1))
    draft = ids[:, at : at + DRAFT].copy()
    draft[:, accepted:] += 1
    _, after = call(draft % 96, ones(at + DRAFT), before)
    pasts = {"splice": page["splice"](before, after, DRAFT, accepted), "replay": before}
    if accepted:
        pasts["replay"] = call(ids[:, at:stop], ones(stop), before)[1]
    if accepted == DRAFT or at + DRAFT < WINDOW:
        pasts["crop"] = page["crop"](after, at + DRAFT, DRAFT - accepted)
    else:
        with pytest.raises(ValueError, match=f"too few to take back {DRAFT - accepted} of {at + DRAFT} tokens"):
            page["crop"](after, at + DRAFT, DRAFT - accepted)
    for name, past in pasts.items():
        logits, _ = call(ids[:, stop : stop + 3], ones(stop + 3), past)
        assert off(logits, wanted[:, stop : stop + 3]) < ROUNDING, name


def test_a_crop_that_is_not_refused_would_be_wrong(page: dict[str, Any]) -> None:
    ids, at = text(1), 2 * WINDOW
    _, past = page["call"](ids[:, :at], ones(at), page["empty"](1))
    short = {name: rows[:, :, :-2] for name, rows in past.items()}
    logits, _ = page["call"](ids[:, at - 2 : at], ones(at), short)
    assert off(logits, whole(page, ids)[:, at - 2 : at]) > 1e-2


def test_rows_join_move_and_leave(page: dict[str, Any]) -> None:
    texts, lengths = [text(seed) for seed in (1, 2, 3)], (2 * WINDOW, 3, WINDOW + 2)
    wanted, call = [whole(page, ids) for ids in texts], page["call"]
    past, mask = call(texts[0][:, : lengths[0]], ones(lengths[0]), page["empty"](1))[1], ones(lengths[0])
    for ids, count in zip(texts[1:], lengths[1:], strict=True):
        past, mask = page["join"](past, mask, call(ids[:, :count], ones(count), page["empty"](1))[1], ones(count))
    for rows in ([0, 1, 2], [2, 0, 1, 1], [0, 2]):
        moved, moved_mask = page["take"](past, mask, rows)
        for step in range(3):
            token = np.concatenate([texts[row][:, lengths[row] + step][None] for row in rows])
            moved_mask = np.pad(moved_mask, ((0, 0), (0, 1)), constant_values=1)
            logits, moved = call(token, moved_mask, moved)
            for place, row in enumerate(rows):
                assert off(logits[place, 0], wanted[row][0, lengths[row] + step]) < ROUNDING, (rows, row, step)


def test_saved_caches_are_shared_by_two_requests(page: dict[str, Any], tmp_path: Path) -> None:
    at, prefix = WINDOW + 5, text(1)
    _, past = page["call"](prefix[:, :at], ones(at), page["empty"](1))
    page["save"](tmp_path / "prefix.npz", past, ones(at))
    past, mask = page["load"](tmp_path / "prefix.npz")
    for seed in (4, 5):
        ids = np.concatenate([prefix[:, :at], text(seed, 6)], axis=1)
        logits, _ = page["call"](ids[:, at:], np.concatenate([mask, ones(6)], axis=1), past)
        assert off(logits, whole(page, ids)[:, at:]) < ROUNDING
