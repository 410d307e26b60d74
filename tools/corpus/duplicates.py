"""Finds which documents of a group (a language, or a pair in both directions) are copies of which others.

Works on hashes computed part by part, one hash range at a time, which bounds the memory that a group needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emma.tools.corpus.minhash import jaccard

__all__ = ["Copies", "candidate_pairs", "exact_copies", "near_copies", "over_used"]

_BYTES_A_ROW = 64
"""Memory that sorting needs per row: key, position, order."""

_ALL_PAIRS = 8
"""In buckets up to this size, all pairs of documents are compared."""

Reader = Callable[[], Iterator[NDArray[np.uint64]]]
"""Yields the hashes of a group, array by array, in document order; can be called repeatedly."""


@dataclass
class Copies:
    """Removed documents of a group: `removed[i]` is a copy of `kept[i]`; both are positions in the group.

    `similarity` is 1 for exact copies and the Jaccard index for near ones.
    """

    removed: NDArray[np.int64]
    kept: NDArray[np.int64]
    similarity: NDArray[np.float64]

    @classmethod
    def none(cls) -> Copies:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float64))


def _ranges(documents: int, memory: int) -> int:
    """Number of hash ranges that keep a sort within `memory` bytes."""
    return max(1, -(-documents * _BYTES_A_ROW // memory))


def _range_of(hashes: NDArray[np.uint64], ranges: int) -> NDArray[np.uint64]:
    return hashes % np.uint64(ranges)


def exact_copies(keys: Reader, ranks: NDArray[np.int64], memory: int) -> Copies:
    """Copies with equal 128-bit keys; of each set, the document with the lowest rank stays.

    Args:
        keys: arrays of documents × 2.
        ranks: rank of each document in the group; lower is better, and position breaks ties.
        memory: approximate bytes that the sort may use.
    """
    removed, kept = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ranges = _ranges(len(ranks), memory)
    for number in range(ranges):
        chosen_keys, chosen_rows = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
        start = 0
        for array in keys():
            inside = np.flatnonzero(_range_of(array[:, 1], ranges) == number)
            chosen_keys.append(array[inside])
            chosen_rows.append(inside + start)
            start += len(array)
        key, row = np.concatenate(chosen_keys), np.concatenate(chosen_rows)
        order = np.lexsort((row, ranks[row], key[:, 1], key[:, 0]))
        key, row = key[order], row[order]
        same = (key[1:] == key[:-1]).all(axis=1)
        first = np.flatnonzero(np.concatenate([[True], ~same])) if len(row) else np.zeros(0, np.int64)
        leader = np.repeat(row[first], np.diff(np.concatenate([first, [len(row)]])))
        copies = leader != row
        removed.append(row[copies])
        kept.append(leader[copies])
    rows, leaders = np.concatenate(removed), np.concatenate(kept)
    order = np.argsort(rows)
    return Copies(rows[order], leaders[order], np.ones(len(rows)))


def candidate_pairs(
    band_hashes: Callable[[int], Iterator[NDArray[np.uint64]]],
    number_of_bands: int,
    searched: NDArray[np.int64],
    ranks: NDArray[np.int64],
    memory: int,
) -> NDArray[np.int64]:
    """Pairs of documents that share a band of their signatures (pairs × 2, the better-ranked document first).

    In a large bucket, each document is paired with the best-ranked one and with its neighbours.

    Args:
        band_hashes: for a band, the hashes of all documents of the group, array by array.
        number_of_bands: bands per signature.
        searched: positions of the documents that take part.
        ranks: rank of each document of the group.
        memory: approximate bytes that the sort may use.
    """
    takes_part = np.zeros(len(ranks), np.bool_)
    takes_part[searched] = True
    ranges = _ranges(len(searched), memory)
    pairs = np.zeros(0, np.int64)  # better × documents + worse
    for band in range(number_of_bands):
        for number in range(ranges):
            hashes, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
            start = 0
            for array in band_hashes(band):
                inside = np.flatnonzero(
                    (_range_of(array, ranges) == number) & takes_part[start : start + len(array)]
                )
                hashes.append(array[inside])
                rows.append(inside + start)
                start += len(array)
            found = _bucket_pairs(np.concatenate(hashes), np.concatenate(rows), ranks)
            if len(found):
                pairs = np.unique(np.concatenate([pairs, found[:, 0] * len(ranks) + found[:, 1]]))
    return np.stack(np.divmod(pairs, max(len(ranks), 1)), axis=1)


def _bucket_pairs(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    order = np.lexsort((rows, ranks[rows], hashes))
    hashes, rows = hashes[order], rows[order]
    edges = (
        np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        if len(rows)
        else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.concatenate([edges, [len(rows)]]))
    position = np.arange(len(rows)) - np.repeat(edges, sizes)
    first = np.repeat(rows[edges], sizes)
    found = [np.stack([first[position > 0], rows[position > 0]], axis=1)]
    size = np.repeat(sizes, sizes)
    for distance in range(1, _ALL_PAIRS):
        # Neighbours one and two places apart in any bucket; all distances in a small one.
        later = position > distance if distance <= 2 else (position > distance) & (size <= _ALL_PAIRS)
        at = np.flatnonzero(later)
        found.append(np.stack([rows[at - distance], rows[at]], axis=1))
    return np.concatenate(found)


def near_copies(
    pairs: NDArray[np.int64],
    sets: Callable[[int], NDArray[np.uint32]],
    ranks: NDArray[np.int64],
    threshold: float,
) -> Copies:
    """Near copies among the candidates.

    In rank order, best first, a document is removed if its Jaccard index with one that stays is at least
    `threshold`; so each removed document has a near copy that stays.

    Args:
        pairs: candidates, the better-ranked document first.
        sets: gives the sorted shingle set of a document.
        ranks: rank of each document of the group.
        threshold: smallest Jaccard index of near duplicates.
    """
    better, worse = pairs[:, 0], pairs[:, 1]
    order = np.lexsort((better, ranks[better], worse, ranks[worse]))
    gone: set[int] = set()
    removed, kept, similarity = [], [], []
    for one, other in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if other in gone or one in gone:
            continue
        index = jaccard(sets(one), sets(other))
        if index >= threshold:
            gone.add(other)
            removed.append(other)
            kept.append(one)
            similarity.append(index)
    result = Copies(np.array(removed, np.int64), np.array(kept, np.int64), np.array(similarity, np.float64))
    order = np.argsort(result.removed)
    return Copies(result.removed[order], result.kept[order], result.similarity[order])


def over_used(keys: Sequence[NDArray[np.uint64]], ranks: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Positions of documents whose key (64 bits of one side's text) `limit` or more better-ranked ones share.

    Args:
        keys: first column of the side's keys, array by array; one entry per document.
        ranks: rank of each document.
        limit: how many documents may share a key.
    """
    key = np.concatenate([np.zeros(0, np.uint64), *keys])
    rows = np.arange(len(key))
    order = np.lexsort((rows, ranks, key))
    key, rows = key[order], rows[order]
    edges = (
        np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(rows) else np.zeros(0, np.int64)
    )
    position = np.arange(len(rows)) - np.repeat(edges, np.diff(np.concatenate([edges, [len(rows)]])))
    return np.sort(rows[position >= limit])
