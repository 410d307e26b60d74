"""The learning rate's curve, where it is not Megatron's from its first step: begun further on (`schedule.offset`), or one
that Megatron does not have (`tools/training/curves.py`).

Answers `train`, before the first step of a launch. A resumed launch finds the scheduler's place in its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_args

from emma.recipes.schema import Recipe
from emma.recipes.schema.training import OWN_CURVES
from emma.tools.training.curves import own_rate

__all__ = ["Curve"]


class Curve:
    """Puts the scheduler where the recipe's curve begins."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Sets the rate of the first step, then trains."""
        schedule, batch = self.recipe.schedule, self.recipe.batch.global_
        if get_args().iteration == 0 and schedule.offset:
            # Megatron counts samples, in multiples of the global batch.
            scheduler.num_steps = schedule.offset * batch
        if schedule.decay in OWN_CURVES:
            peak = schedule.learning_rate

            def get_lr(group: dict[str, Any]) -> float:
                # Frozen weights have a group of their own, with a peak of 0.
                return own_rate(schedule, scheduler.num_steps // batch) * group.get("max_lr", peak) / peak

            scheduler.get_lr = get_lr
        if schedule.offset or schedule.decay in OWN_CURVES:
            scheduler.step(increment=0)
        return original(forward_step, model, optimizer, scheduler, *rest, **named)
