"""Weights of a run's checkpoints in their average. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

__all__ = ["Average", "coefficients"]

Average = Literal["uniform", "ema", "linear", "1-sqrt", "cosine"]

# What is left of the learning rate after a share x of the decay; x goes from 0 to 1.
_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def coefficients(kind: Average, steps: Sequence[int], ema_decay: float | None = None) -> list[float]:
    """Weights that sum to 1, for steps in ascending order.

    A decay of the learning rate from the first step on multiplies the updates between checkpoints j-1 and j by w_j. The
    same sum of updates is an average of the checkpoints with weights c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_n = w_n (Tian
    et al., WSM, arXiv 2507.17634, section 3; exact for updates that don't depend on the weights). Here w_j is the decay at
    step j, which would end one mean interval after the last checkpoint: of evenly spaced checkpoints the linear decay is
    then the uniform average.

    Args:
        kind: `uniform`; `ema`: a moving average that begins at the first checkpoint; or a decay.
        steps: optimizer steps of the checkpoints, two or more.
        ema_decay: with `ema`, the factor of the average so far, per checkpoint.
    """
    last = len(steps) - 1
    if kind == "uniform":
        return [1 / len(steps)] * len(steps)
    if kind == "ema":
        if ema_decay is None:
            raise ValueError("an exponential moving average needs its decay")
        return [ema_decay**last, *((1 - ema_decay) * ema_decay ** (last - j) for j in range(1, last + 1))]
    span = (steps[-1] - steps[0]) * (last + 1) / last
    left = [_DECAYS[kind]((step - steps[0]) / span) for step in steps]
    return [here - after for here, after in zip(left, [*left[1:], 0.0], strict=True)]
