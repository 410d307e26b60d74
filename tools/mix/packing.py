"""Best-fit packing: samples in which no document that fits is cut.

After Ding et al. 2024, "Fewer Truncations Improve Language Modeling": documents longer than a sample are cut
into pieces of a sample's length, then pieces are placed, longest first, each into the fullest sample that
still has room for it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["best_fit", "cut_to_samples"]


def cut_to_samples(
    rows: np.ndarray, capacity: int, itemsize: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts rows longer than a sample into pieces of `capacity` tokens.

    Consecutive pieces share one token: it is the last label of one and the first input of the next, so
    that every token of the document but its first is predicted exactly once.

    Args:
        rows: `ROW` [documents].
        capacity: tokens of a sample with its last label (sequence length + 1).
        itemsize: bytes of a token.

    Returns:
        `ROW` [pieces] in the order of the documents; which pieces hold the first token of their document, and
        which of these belong to a document that was cut (bool [pieces]).
    """
    lengths = rows["tokens"].astype(np.int64)
    step = capacity - 1
    # A piece of one token has nothing to predict, so the last one has at least two.
    pieces = np.maximum(1, -(-(lengths - 1) // step))
    result = np.repeat(rows, pieces)
    number = np.arange(len(result)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = number * step
    result["offset"] += begin * itemsize
    result["tokens"] = np.minimum(np.repeat(lengths, pieces) - begin, capacity)
    first = number == 0
    return result, first, first & (np.repeat(pieces, pieces) > 1)


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Packs pieces into bins, longest first, each into the fullest bin that still has room for it.

    Pieces of one length are placed together: the fullest bins that have room take one each, then the next
    ones; when none has room, as many bins are opened as needed. Work grows with the number of
    distinct lengths, not with the number of pieces.

    Args:
        lengths: tokens of each piece, 1 to `capacity`.
        capacity: tokens of a bin.

    Returns:
        Bin of each piece (int64), number of bins.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, starts = np.unique(lengths[order][::-1], return_index=True)
    counts = np.diff(np.append(starts, len(order)))
    bins = np.empty(len(order), np.int64)
    stacks: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    total = 0
    position = 0
    rooms = 0  # bit r is set if some bin has room for r tokens
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        pieces = order[position : position + count]
        position += count
        placed = 0
        while placed < count:
            enough = rooms >> size
            room = size + (enough & -enough).bit_length() - 1
            if not enough:
                fresh = np.arange(total, total + -(-(count - placed) // (capacity // size)))
                total += len(fresh)
                stacks[capacity].append(fresh)
                rooms |= 1 << capacity
                continue
            taken = _take(stacks[room], count - placed)
            if not stacks[room]:
                rooms &= ~(1 << room)
            bins[pieces[placed : placed + len(taken)]] = taken
            placed += len(taken)
            if room > size:
                stacks[room - size].append(taken)
                rooms |= 1 << (room - size)
    return bins, total


def _take(stack: list[np.ndarray], count: int) -> np.ndarray:
    """Takes up to `count` bins off a stack of arrays."""
    taken = []
    while stack and count:
        top = stack.pop()
        if len(top) > count:
            stack.append(top[count:])
            top = top[:count]
        taken.append(top)
        count -= len(top)
    return np.concatenate(taken)
