"""The arithmetic of merges on blocks of weights in FP32.

Operations and their order are those of mergekit 0.1.5, so that FP32 results have the same bits. Each result depends only
on the values at its own place and on numbers of the whole parameter (`statistics.py`): blocks may be cut anywhere.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

__all__ = ["Sparsify", "arc", "at_least", "average", "kept", "task"]

Sparsify = Callable[[torch.Tensor, int], torch.Tensor]
"""Drops values of a difference; the number is the place of its first value in the parameter."""

_PER_COUNTER = 8  # 32-bit numbers that Philox makes of one value of its counter


def average(parts: Sequence[torch.Tensor], weights: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Weighted sum, divided by the sum of the weights if `normalize`.

    Args:
        parts: blocks of one size, of any type.
        weights: [parts], FP32.
    """
    total = torch.zeros(parts[0].shape, dtype=torch.float32)
    one = (1,) * total.dim()
    for part, weight in zip(parts, weights, strict=True):
        total.addcmul_(part, weight.reshape(one))
    return total.div_(weights.reshape(1, -1).sum(dim=1).reshape(one)) if normalize else total


def task(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: torch.Tensor,
    first: int,
    *,
    sparsify: Sequence[Sparsify | None],
    signs: bool,
    normalize: bool,
    scale: float,
) -> torch.Tensor:
    """Base plus the sum of weighted differences from it, in the memory of the differences, which it overwrites.

    Args:
        base: FP32.
        deltas: the other models' differences from it, FP32.
        weights: [deltas], FP32.
        first: place of the blocks' first value in the parameter.
        sparsify: how each difference loses values; None for all of them.
        signs: of the weighted differences, only those with the sign of their sum count (TIES, arXiv 2306.01708; where the
            sum is zero, the positive ones).
        normalize: divide by the sum of the weights or, with `signs`, of those that count, value by value.
        scale: factor of the merged difference.
    """
    left = [
        delta if drop is None else drop(delta, first) for delta, drop in zip(deltas, sparsify, strict=True)
    ]
    parts = [
        part if factor == 1 else part.mul_(weight)
        for part, weight, factor in zip(left, weights, weights.tolist(), strict=True)
    ]
    if signs:
        majority = (_total([parts[0].clone(), *parts[1:]]) >= 0).to(torch.float32) * 2 - 1
        masks = [part.sign() == majority for part in parts]
        mixed = _total([part * mask for part, mask in zip(parts, masks, strict=True)])
        divisor = _total([weight * mask for weight, mask in zip(weights, masks, strict=True)])
        divisor[divisor == 0] = 1
    else:
        mixed = _total(parts)
        divisor = weights.sum(dim=0)
        divisor = torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    if normalize:
        mixed.div_(divisor)
    if scale != 1:
        mixed.mul_(scale)
    return mixed.add_(base)


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, from the first to the last, in the memory of the first."""
    return functools.reduce(torch.Tensor.add_, parts)


def arc(a: torch.Tensor, b: torch.Tensor, factors: tuple[float, float]) -> torch.Tensor:
    """A point between two models on the arc through them; the factors come from their angle."""
    one, other = (torch.tensor(factor, dtype=torch.float32) for factor in factors)
    return one * a.float() + other * b.float()


def at_least(threshold: int) -> Sparsify:
    """Keeps values whose magnitude, as the bits of an FP32 number, is `threshold` or more: all that tie with the last, as
    in the authors' code of TIES (mergekit keeps some of these)."""

    def drop(delta: torch.Tensor, first: int) -> torch.Tensor:
        return delta * (delta.abs().view(torch.int32) >= threshold)

    return drop


def kept(seed: int, model: int, name: str, density: float, first: int, count: int) -> torch.Tensor:
    """Which of a parameter's values DARE keeps, as booleans [count].

    The numbers are Philox's, with a key made of seed, model and parameter, and the value's place as the counter: neither
    threads nor files nor blocks change them.

    Args:
        seed: of the merge.
        model: number of the model in the merge.
        name: transformers' name of the parameter.
        density: share of values that are kept.
        first: place of the first value in the parameter, row by row.
        count: values.
    """
    digest = hashlib.sha256(f"{seed} {model} {name}".encode()).digest()
    generator = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    generator.advance(first // _PER_COUNTER)
    skipped = first % _PER_COUNTER
    raw = generator.random_raw(-(-(skipped + count) // 2)).astype("<u8", copy=False)
    numbers = raw.view("<u4")[skipped : skipped + count]
    return torch.from_numpy(numbers < round(density * 2**32))
