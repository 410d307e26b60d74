"""Numbers of a whole parameter that some methods need before they can merge its first block, from one or two passes over
it in constant memory. Their sums are taken in FP64, in the order of the values, whatever the number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

__all__ = ["Stream", "arc_factors", "magnitude_ratio", "trim_threshold"]

Stream = Callable[[], Iterator[tuple[int, torch.Tensor]]]
"""Yields blocks of a difference in FP32, each with the place of its first value; may be called several times."""

_LOW_BITS = 15
_PARALLEL = 0.9995  # mergekit's: beyond this cosine the arc is a line
_TINY = 1e-7


def trim_threshold(stream: Stream, keep: int) -> int:
    """Bits of the magnitude that is number `keep` from the top, exactly.

    Magnitudes of FP32 have the order of their bits. The first pass counts the upper 16 of 31 bits, the second the lower
    15 of the values that share the upper bits of the one looked for.
    """

    def magnitudes() -> Iterator[np.ndarray]:
        for _, delta in stream():
            yield delta.abs().reshape(-1).view(torch.int32).numpy()

    upper = np.zeros(1 << 16, np.int64)
    for bits in magnitudes():
        upper += np.bincount(bits >> _LOW_BITS, minlength=len(upper))
    bin_, rest = _from_top(upper, keep)
    lower = np.zeros(1 << _LOW_BITS, np.int64)
    for bits in magnitudes():
        inside = bits[(bits >> _LOW_BITS) == bin_]
        lower += np.bincount(inside & ((1 << _LOW_BITS) - 1), minlength=len(lower))
    low, _ = _from_top(lower, rest)
    return (bin_ << _LOW_BITS) | low


def _from_top(counts: np.ndarray, number: int) -> tuple[int, int]:
    """The bin that holds value `number` from the top, and its number within that bin."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, number))
    return len(counts) - 1 - place, number - (int(above[place - 1]) if place else 0)


def magnitude_ratio(stream: Stream, mask: Callable[[int, int], torch.Tensor]) -> float:
    """Sum of magnitudes over that of the values that `mask(place, count)` keeps; 1 if either is next to nothing."""
    whole = left = 0.0
    for first, delta in stream():
        sizes = delta.abs().reshape(-1).numpy().astype(np.float64)
        whole += float(np.add.reduce(sizes))
        left += float(np.add.reduce(sizes[mask(first, len(sizes)).numpy()]))
    return whole / left if whole >= _TINY and left >= _TINY else 1.0


def arc_factors(
    pairs: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]], t: float
) -> tuple[float, float]:
    """Factors of two parameters at the share `t` of the arc between them; those of a line where they are (nearly)
    parallel, opposite, or zero."""
    squares = [0.0, 0.0]
    product = 0.0
    for a, b in pairs():
        one, other = (each.float().reshape(-1).numpy().astype(np.float64) for each in (a, b))
        squares = [
            total + float(np.add.reduce(x * x)) for total, x in zip(squares, (one, other), strict=True)
        ]
        product += float(np.add.reduce(one * other))
    lengths = [math.sqrt(total) for total in squares]
    cosine = product / math.prod(length if length > 1e-8 else 1.0 for length in lengths)
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > _PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
