"""The learning rate of a step, from the recipe's words. Needs no torch."""

from __future__ import annotations

import math

from emma.recipes.schema.training import Schedule

__all__ = ["learning_rate"]


def learning_rate(schedule: Schedule, updates: int) -> float:
    """The rate of the step that follows `updates` updates of the schedule.

    The first step follows no update, so a warm-up begins at 0; a skipped step is no update. Warm-up is a
    straight line to the peak. From its end to `steps`, `cosine` is half a wave and `linear` a straight line
    from the peak to `min_learning_rate`; `constant` stays at the peak; `wsd` stays there until
    `wsd_decay_steps` before the end, then falls in a straight line.

    Args:
        schedule: the recipe's schedule.
        updates: number of updates so far, 0 at the first step.
    """
    peak, low = schedule.learning_rate, schedule.min_learning_rate
    if updates < schedule.warmup_steps:
        return peak * updates / schedule.warmup_steps
    if schedule.decay == "constant":
        return peak
    if schedule.decay == "wsd":
        left = (schedule.steps - updates) / (schedule.wsd_decay_steps or schedule.steps)
        return low + (peak - low) * min(1.0, left)
    done = (updates - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    height = 1 - done if schedule.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return low + (peak - low) * height
