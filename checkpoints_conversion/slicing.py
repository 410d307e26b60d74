"""Slices of a large tensor that is stored in blocks. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Overlap", "covered", "overlaps"]


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
