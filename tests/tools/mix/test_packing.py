from __future__ import annotations

import numpy as np
import pytest

from emma.tools.mix.layout import ROW
from emma.tools.mix.packing import best_fit, cut_to_samples


def rows_of(lengths: list[int]) -> np.ndarray:
    rows = np.zeros(len(lengths), ROW)
    rows["tokens"] = lengths
    rows["offset"] = np.arange(len(lengths)) * 10_000
    return rows


def one_by_one(lengths: list[int], capacity: int) -> int:
    """Best-fit decreasing, written down naively: the number of bins."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


def test_bins_hold_everything_and_nothing_too_much() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        capacity = int(rng.integers(2, 200))
        lengths = rng.integers(1, capacity + 1, int(rng.integers(1, 300)))
        bins, count = best_fit(lengths, capacity)
        filled = np.bincount(bins, lengths, count)
        assert (filled > 0).all() and (filled <= capacity).all() and len(filled) == count
        assert count >= -(-lengths.sum() // capacity)


def test_as_few_bins_as_placing_pieces_one_by_one() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        capacity = int(rng.integers(10, 60))
        lengths = rng.integers(1, capacity + 1, int(rng.integers(1, 120)))
        _, count = best_fit(lengths, capacity)
        assert count <= one_by_one(lengths.tolist(), capacity) * 1.05 + 1


def test_real_lengths_leave_little_padding() -> None:
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(6, 1.2, 200_000).astype(int), 3, 2049)
    bins, count = best_fit(lengths, 2049)
    assert 1 - lengths.sum() / (count * 2049) < 0.002
    assert len(bins) == len(lengths)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 18, 19, 20, 28, 100])
def test_pieces_of_a_long_document_predict_every_token_once(length: int) -> None:
    capacity, width = 10, 4
    pieces, first, cut = cut_to_samples(rows_of([length, 5]), capacity, width)
    mine = pieces[: len(pieces) - 1]
    starts = mine["offset"] // width
    predicted = [t for s, n in zip(starts, mine["tokens"], strict=True) for t in range(s + 1, s + n)]
    assert predicted == list(range(1, length))
    assert mine["tokens"].max() <= capacity
    assert length == 1 or mine["tokens"].min() >= 2
    assert first.tolist() == [True] + [False] * (len(mine) - 1) + [True]
    assert cut.sum() == (length > capacity)
