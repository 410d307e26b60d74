from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emma.tools.mix import shuffle
from emma.tools.mix.layout import ROW
from emma.tools.mix.shuffle import shuffled


def rows_of(count: int) -> np.ndarray:
    rows = np.zeros(count, ROW)
    rows["offset"] = np.arange(count)
    return rows


@pytest.mark.parametrize("bucket_rows", [7, 100, 10_000])
def test_every_row_comes_once_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int
) -> None:
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", bucket_rows)
    rows = rows_of(1000)
    parts = [rows[:1], rows[1:400], rows[400:400], rows[400:]]
    results = [
        np.concatenate(list(shuffled(parts, 1000, np.random.default_rng(seed), tmp_path)))["offset"]
        for seed in (1, 1, 2)
    ]
    assert sorted(results[0].tolist()) == list(range(1000))
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], rows["offset"])
    assert list(tmp_path.iterdir()) == []


def test_any_place_is_as_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come first are spread over the whole result, over several buckets too."""
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 100)
    places = np.zeros((50, 500))
    for seed in range(50):
        result = np.concatenate(list(shuffled([rows_of(500)], 500, np.random.default_rng(seed), tmp_path)))[
            "offset"
        ]
        places[seed, result] = np.arange(500)
    means = places.mean(axis=0)
    # The mean of 50 uniform places has a standard deviation of 500 / sqrt(12 * 50) = 20.
    assert abs(means[:50].mean() - 250) < 15 and abs(means[-50:].mean() - 250) < 15
    assert means.std() == pytest.approx(500 / np.sqrt(12 * 50), rel=0.2)
