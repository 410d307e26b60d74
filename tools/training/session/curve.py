"""The learning rate's curve, where it is not Megatron's from its first step: begun further on (`schedule.offset`).

Answers `train`, before the first step of a run; later launches find the scheduler's place in their checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_args

from emma.recipes.schema import Recipe

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
        if get_args().iteration == 0 and self.recipe.schedule.offset:
            # Megatron counts samples, in multiples of the global batch.
            scheduler.num_steps = self.recipe.schedule.offset * self.recipe.batch.global_
            scheduler.step(increment=0)
        return original(forward_step, model, optimizer, scheduler, *rest, **named)
