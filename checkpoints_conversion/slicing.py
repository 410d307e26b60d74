"""Slices of a large tensor that is stored in blocks. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Overlap", "covered", "overlaps", "row_blocks"]

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Overlap:
    """The part of a block that a request needs: its place in the block and in the request, one slice per
    axis."""

    block: int
    inside: tuple[slice, ...]
    wanted: tuple[slice, ...]


def overlaps(
    blocks: Iterable[tuple[Sequence[int], Sequence[int]]], offsets: Sequence[int], sizes: Sequence[int]
) -> list[Overlap]:
    """Finds the parts of blocks that make up a slice.

    Args:
        blocks: first element and extent of each block along each axis.
        offsets: first element of the slice along each axis.
        sizes: extent of the slice along each axis.
    """
    result = []
    for number, (starts, extents) in enumerate(blocks):
        inside, wanted = [], []
        for start, size, first, extent in zip(starts, extents, offsets, sizes, strict=True):
            low, high = max(start, first), min(start + size, first + extent)
            inside.append(slice(low - start, high - start))
            wanted.append(slice(low - first, high - first))
        if all(part.stop > part.start for part in inside):
            result.append(Overlap(number, tuple(inside), tuple(wanted)))
    return result


def covered(parts: Iterable[Overlap]) -> int:
    """Number of elements that the overlaps cover together; they must not overlap each other."""
    return sum(math.prod(part.stop - part.start for part in overlap.wanted) for overlap in parts)


def row_blocks(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts a parameter into rows of at most 32 MiB in FP32: first row and number of rows."""
    if not sizes:
        yield 0, 1
        return
    step = max(1, _BLOCK_BYTES // (math.prod(sizes[1:]) * 4))
    for first in range(0, sizes[0], step):
        yield first, min(step, sizes[0] - first)
