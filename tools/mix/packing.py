"""Best-fit packing: samples in which no document that fits is cut.

After Ding et al. 2024, "Fewer Truncations Improve Language Modeling": documents longer than a sample are cut
into pieces of a sample's length, then pieces are placed, longest first, each into the fullest sample that
still has room for it.
"""

from __future__ import annotations

import numpy as np

from emma.base.errors import UserError

__all__ = ["best_fit", "bins_needed", "cut_to_samples", "piece_lengths", "split_bins"]


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
        Bin of each piece (int32), number of bins.
    """
    # (NumPy sorts 16 bits by radix.)
    rank = capacity - lengths
    order = np.argsort(rank.astype(np.uint16) if capacity < 1 << 16 else rank, kind="stable")
    sizes, starts = np.unique(lengths[order][::-1], return_index=True)
    counts = np.diff(np.append(starts, len(order)))
    bins = np.empty(len(order), np.int32)
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
                fresh = np.arange(total, total + -(-(count - placed) // (capacity // size)), dtype=np.int32)
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


def piece_lengths(lengths: np.ndarray, weights: np.ndarray, capacity: int) -> np.ndarray:
    """How many pieces of each length documents are cut into.

    Args:
        lengths: tokens of each document.
        weights: how often each is read.
        capacity: tokens of a sample with its last label.

    Returns:
        float64 [capacity + 1], by tokens of a piece.
    """
    step = capacity - 1
    lengths = lengths.astype(np.int64)
    whole = np.maximum(0, -(-(lengths - 1) // step) - 1)
    found = np.bincount(lengths - whole * step, weights, capacity + 1)
    found[capacity] += float((whole * weights).sum())
    return found


def bins_needed(pieces: np.ndarray, capacity: int, buckets: int = 1) -> int:
    """Number of bins that `best_fit` makes of pieces that are dealt evenly to buckets and packed bucket by bucket.

    Args:
        pieces: number of pieces by length [capacity + 1].
        capacity: tokens of a bin.
        buckets: number of buckets.
    """
    counts = np.diff(np.rint(np.cumsum(pieces) / buckets).astype(np.int64), prepend=0)
    lengths = np.repeat(np.arange(capacity + 1), counts)
    return buckets * best_fit(lengths, capacity)[1] if len(lengths) else 0


def split_bins(
    rows: np.ndarray, sizes: np.ndarray, first: np.ndarray, more: int, itemsize: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Splits bins until there are `more` of them: between two rows, or where there are too few rows, within the longest.

    Args:
        rows: `ROW`, bin after bin.
        sizes: rows of each bin.
        first: which rows hold the first token of their document.
        more: how many bins to add.
        itemsize: bytes of a token.
        rng: chooses where.

    Returns:
        Rows, sizes and `first` of the new bins; how many rows were cut.

    Raises:
        UserError: the rows are too short.
    """
    begins = np.zeros(len(rows), bool)
    begins[np.cumsum(sizes) - sizes] = True
    # A sample of one token would have nothing to predict.
    enough = rows["tokens"] > 1
    between = np.flatnonzero(~begins & enough & np.append(False, enough[:-1]))
    within = max(0, more - len(between))
    begins[rng.choice(between, more - within, replace=False)] = True
    if within:
        longest = np.argsort(-rows["tokens"], kind="stable")[:within]
        if len(longest) < within or rows["tokens"][longest[-1]] < 3:
            raise UserError("the mix has too few tokens for its samples; lower the budget, or add text")
        times = np.ones(len(rows), np.int64)
        times[longest] = 2
        heads = np.cumsum(times) - times
        rows, begins, first = np.repeat(rows, times), np.repeat(begins, times), np.repeat(first, times)
        head, tail = heads[longest], heads[longest] + 1
        length = rows["tokens"][head].astype(np.int64)
        half = length // 2 + 1
        rows["tokens"][head], rows["tokens"][tail] = half, length - half + 1
        rows["offset"][tail] += (half - 1) * itemsize
        begins[tail], first[tail] = True, False
    return rows, np.diff(np.append(np.flatnonzero(begins), len(rows))), first, within
