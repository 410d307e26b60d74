from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from emma.tools.mix.layout import ROW
from emma.tools.mix.select import generator
from emma.tools.mix.shuffle import Shuffle


def rows_of(count: int) -> np.ndarray:
    rows = np.zeros(count, ROW)
    rows["offset"] = np.arange(count)
    rows["tokens"] = 1 + np.arange(count) % 7
    rows["shard"] = np.arange(count) % 3
    return rows


def shuffled(
    folder: Path, rows: np.ndarray, buckets: int, seed: int, pieces: int = 3, sizes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """All rows after a shuffle into which they were put in pieces, the last piece first."""
    with Shuffle(folder / "scratch", buckets, 3, partial(generator, seed, "test")) as shuffle:
        units = np.arange(len(rows)) if sizes is None else np.arange(len(sizes))
        starts = units if sizes is None else np.cumsum(sizes) - sizes
        for number, part in reversed(list(enumerate(np.array_split(units, pieces)))):
            begin, end = (
                int(starts[part[0]]),
                int(starts[part[-1]] + (1 if sizes is None else sizes[part[-1]])),
            )
            shuffle.put((number,), rows[begin:end], None if sizes is None else sizes[part])
        taken = [shuffle.take(bucket) for bucket in range(buckets)]
        for bucket, (mine, _) in enumerate(taken):
            assert shuffle.rows[bucket] == len(mine) and shuffle.tokens[bucket] == mine["tokens"].sum()
            assert shuffle.shard_rows[bucket].tolist() == np.bincount(mine["shard"], minlength=3).tolist()
    found = np.concatenate([mine for mine, _ in taken])
    return found, None if sizes is None else np.concatenate([each for _, each in taken if each is not None])


@pytest.mark.parametrize("buckets", [1, 7, 100])
def test_every_row_comes_once_in_another_order(tmp_path: Path, buckets: int) -> None:
    rows = rows_of(1000)
    results = [shuffled(tmp_path, rows, buckets, seed)[0] for seed in (1, 1, 2)]
    assert np.array_equal(np.sort(results[0], order="offset"), rows)
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("buckets", [1, 5])
def test_units_stay_together(tmp_path: Path, buckets: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 6, 300)
    rows = rows_of(int(sizes.sum()))
    found, found_sizes = shuffled(tmp_path, rows, buckets, 1, sizes=sizes)
    assert found_sizes is not None and sorted(found_sizes.tolist()) == sorted(sizes.tolist())
    starts = dict(zip((np.cumsum(sizes) - sizes).tolist(), sizes.tolist(), strict=True))
    at = 0
    for size in found_sizes.tolist():
        first = int(found["offset"][at])
        assert starts.pop(first) == size
        assert found["offset"][at : at + size].tolist() == list(range(first, first + size))
        at += size
    assert not starts


@pytest.mark.parametrize("packed", [False, True])
def test_any_place_is_as_likely(tmp_path: Path, packed: bool) -> None:
    """Units that come first are spread over the whole result, over several buckets too."""
    sizes = np.full(500, 2) if packed else None
    places = np.zeros((50, 500))
    for seed in range(50):
        result = shuffled(tmp_path, rows_of(1000 if packed else 500), 5, seed, sizes=sizes)[0]["offset"]
        order = result[::2] // 2 if packed else result
        places[seed, order] = np.arange(500)
    means = places.mean(axis=0)
    # The mean of 50 uniform places has a standard deviation of 500 / sqrt(12 * 50) = 20.
    assert abs(means[:50].mean() - 250) < 15 and abs(means[-50:].mean() - 250) < 15
    assert means.std() == pytest.approx(500 / np.sqrt(12 * 50), rel=0.2)
