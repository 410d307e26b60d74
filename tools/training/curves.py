"""Curves of the learning rate that Megatron does not have. Needs no torch."""

from __future__ import annotations

import math

from emma.recipes.schema.training import Schedule

__all__ = ["own_rate"]


def own_rate(schedule: Schedule, updates: int) -> float:
    """The learning rate after so many updates of a curve, for `decay` in `OWN_CURVES`.

    `cosine_inf` is the infinite schedule of Ibrahim et al. 2024 (arXiv 2403.08763, section 7.4): linear warm-up, half a
    cosine wave down to the constant rate, that rate for as long as training goes on, and at last an exponential annealing.
    `range_test` rises exponentially from the lowest to the highest rate (Smith 2017, arXiv 1506.01186).

    Args:
        schedule: the recipe's.
        updates: of the whole curve, `offset` included.
    """
    peak, low, warm = schedule.learning_rate, schedule.min_learning_rate, schedule.warmup_steps
    if schedule.decay == "range_test":
        return float(low * (peak / low) ** min(1.0, updates / max(1, schedule.steps - 1)))
    steady, cooling = schedule.constant_learning_rate, schedule.cooldown_steps
    assert steady is not None and cooling is not None
    if updates < warm:
        return schedule.warmup_from + (peak - schedule.warmup_from) * updates / warm
    if updates < warm + cooling:
        return steady + (peak - steady) * (1 + math.cos(math.pi * (updates - warm) / cooling)) / 2
    annealed = updates - (schedule.curve_steps - schedule.anneal_steps)
    if annealed <= 0:
        return steady
    return float(steady * (low / steady) ** min(1.0, annealed / schedule.anneal_steps))
