"""MinHash against what its theory says: a signature row agrees with probability s, a band with s^rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from emma.recipes.schema.corpus import NearDuplicates
from emma.tools.corpus.minhash import bands, jaccard, shingle_sets, signatures
from emma.tools.corpus.shingles import Shingles

PAIRS = 400
SHINGLES = 200


def alike(similarity: float, pairs: int = PAIRS, seed: int = 0) -> Shingles:
    """Documents in pairs (0 and 1, 2 and 3, ...), the two of a pair with this Jaccard index, others with nothing in
    common."""
    generator = np.random.default_rng(seed)
    common = round(2 * SHINGLES * similarity / (1 + similarity))
    parts: list[NDArray[np.uint64]] = []
    for _ in range(pairs):
        drawn = generator.integers(0, 1 << 64, 2 * SHINGLES - common, np.uint64)
        parts += [drawn[:SHINGLES], np.concatenate([drawn[:common], drawn[SHINGLES:]])]
    lengths = np.array([len(part) for part in parts])
    return Shingles(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]), lengths)


def spread(probability: float, count: int) -> float:
    """Four standard deviations of a share of `count` independent events."""
    return 4 * (probability * (1 - probability) / count) ** 0.5 + 1e-12


@pytest.mark.parametrize("similarity", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_rows_of_signatures_agree_as_often_as_the_jaccard_index(similarity: float) -> None:
    rows = signatures(alike(similarity, 200), 60)
    assert rows.shape == (400, 60)
    values, offsets = shingle_sets(alike(similarity, 1))
    exact = jaccard(values[: offsets[1]], values[offsets[1] :])
    assert exact == pytest.approx(similarity, abs=0.005)
    # Rows are independent of one another: each agrees on its own, and so does the share of all.
    agree = rows[::2] == rows[1::2]
    assert agree.mean() == pytest.approx(exact, abs=spread(exact, agree.size))
    assert np.abs(agree.mean(axis=0) - exact).max() <= spread(exact, 200)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("similarity", [0.5, 0.8])
def test_a_band_agrees_where_all_its_rows_do(rows: int, similarity: float) -> None:
    """A hash of fewer rows than the band has would agree far more often than s^rows."""
    settings = NearDuplicates(bands=10, rows=rows)
    shingles = alike(similarity)
    found = bands(shingles, settings)
    signature = signatures(shingles, settings.bands * rows)
    assert found.shape == (2 * PAIRS, settings.bands)
    agree = found[::2] == found[1::2]
    # Each row of the signature is in exactly one band, `rows` in each.
    together = (signature[::2] == signature[1::2]).reshape(PAIRS, settings.bands, rows).all(axis=2)
    assert np.array_equal(agree, together)
    expected = similarity**rows
    assert agree.mean() == pytest.approx(expected, abs=0.005 * rows + spread(expected, agree.size))


@pytest.mark.parametrize("changed", range(6))
def test_every_row_counts_in_its_band(changed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NearDuplicates(bands=4, rows=6)
    shingles = alike(0.5, 20)
    before = bands(shingles, settings)
    rows = signatures(shingles, 24)
    rows[:, 2 * 6 + changed] ^= np.uint32(1)
    monkeypatch.setattr("emma.tools.corpus.minhash.signatures", lambda *_: rows)
    differs = bands(shingles, settings) != before
    assert differs.all(axis=0).tolist() == [False, False, True, False]
    assert not differs[:, [0, 1, 3]].any()


def test_the_same_rows_in_another_order_are_another_band(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3], [2, 1, 3]], np.uint32)
    monkeypatch.setattr("emma.tools.corpus.minhash.signatures", lambda *_: rows)
    hashes = bands(alike(1.0, 2), NearDuplicates(bands=1, rows=3))[:, 0]
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.65, 0.8, 0.9, 0.97])
def test_recall_of_candidates_is_the_theorys(similarity: float) -> None:
    """1 − (1 − s^rows)^bands of the pairs share a band, and documents with nothing in common share none."""
    settings = NearDuplicates()
    hashes = bands(alike(similarity), settings)
    common = round(2 * SHINGLES * similarity / (1 + similarity))
    exact = common / (2 * SHINGLES - common)
    expected = 1 - (1 - exact**settings.rows) ** settings.bands
    found = (hashes[::2] == hashes[1::2]).any(axis=1)
    assert found.mean() == pytest.approx(expected, abs=spread(expected, PAIRS))
    for band in hashes.T:
        assert len(np.unique(band)) == len(band) - (band[::2] == band[1::2]).sum()


@pytest.mark.parametrize(("similarity", "alike_share"), [(0.79, 0), (0.81, 1)])
def test_what_is_alike_is_decided_by_the_exact_index(similarity: float, alike_share: int) -> None:
    """No candidate below the threshold is a near copy, whatever its signature."""
    values, offsets = shingle_sets(alike(similarity))
    sets = [values[start:stop] for start, stop in itertools.pairwise(offsets)]
    indices = np.array([jaccard(one, other) for one, other in zip(sets[::2], sets[1::2], strict=True)])
    assert (indices >= NearDuplicates().jaccard).mean() == alike_share
    assert indices == pytest.approx([similarity] * PAIRS, abs=0.005)
