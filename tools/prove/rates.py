"""The learning rate of a step, from the recipe's words. Needs no torch."""

from __future__ import annotations

import math

from emma.recipes.schema.training import Schedule

__all__ = ["learning_rate"]


def learning_rate(schedule: Schedule, updates: int) -> float:
    """The rate of the step that follows `updates` updates of the schedule.

    The first step follows no update, so a warm-up begins at `warmup_from`; a skipped step is no update. With an `offset`,
    the curve is that of a run which is longer by so many steps, seen from there. Warm-up is a straight line to the peak.
    From its end to the last step, `cosine` is half a wave and `linear` a straight line from the peak to
    `min_learning_rate`; `constant` stays at the peak; `wsd` stays there until `wsd_decay_steps` before the end, then falls
    in the shape of `wsd_decay_style`. `cosine_inf` is half a wave down to `constant_learning_rate` in `cooldown_steps`,
    which stays until the last `anneal_steps`, where each step takes off the same part; `range_test` adds the same part at
    each step, all the way from `min_learning_rate` to the peak.

    Args:
        schedule: the recipe's schedule.
        updates: number of updates so far, 0 at the first step.
    """
    peak, low, last = schedule.learning_rate, schedule.min_learning_rate, schedule.steps + schedule.offset
    updates += schedule.offset
    if schedule.decay == "range_test":
        return math.exp(
            math.log(low) + (math.log(peak) - math.log(low)) * updates / max(1, schedule.steps - 1)
        )
    if updates < schedule.warmup_steps:
        done = updates / schedule.warmup_steps
        return done * peak + (1 - done) * schedule.warmup_from
    if schedule.decay == "constant":
        return peak
    since = updates - schedule.warmup_steps
    if schedule.decay == "cosine_inf":
        steady, down = schedule.constant_learning_rate or 0.0, schedule.cooldown_steps or 1
        if since < down:
            return (peak + steady) / 2 + (peak - steady) / 2 * math.cos(math.pi * since / down)
        into = schedule.anneal_steps - (last - updates)
        if into <= 0:
            return steady
        return math.exp(math.log(steady) + (math.log(low) - math.log(steady)) * into / schedule.anneal_steps)
    if schedule.decay == "wsd":
        gone = 1 - min(1.0, (last - updates) / (schedule.wsd_decay_steps or last))
        shapes = {
            "linear": 1 - gone,
            "cosine": (1 + math.cos(math.pi * gone)) / 2,
            "exponential": 2 ** (1 - gone) - 1,
            "minus_sqrt": 1 - math.sqrt(gone),
        }
        return low + (peak - low) * shapes[schedule.wsd_decay_style]
    done = since / (last - schedule.warmup_steps)
    height = 1 - done if schedule.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return low + (peak - low) * height
