"""The heartbeat of the loop: which step is done, and when a save or a validation begins and ends.

Answers `training_log` (after a step), `post_training_step_callbacks`, `save_checkpoint_and_time` and
`maybe_finalize_async_save` (around everything). What is made of it is in `tools/runs/heartbeat.py` and
`slurm/watch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emma.recipes.schema import Recipe
from emma.tools.runs.heartbeat import Heartbeat

__all__ = ["Pulse"]


class Pulse:
    """Tells the heartbeat where the loop is."""

    def __init__(self, recipe: Recipe, heartbeat: Heartbeat) -> None:
        self.recipe, self.heartbeat = recipe, heartbeat

    def training_log(
        self,
        original: Callable[..., Any],
        loss_dict: Any,
        total_loss_dict: Any,
        learning_rate: Any,
        iteration: int,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """A step is done."""
        result = original(loss_dict, total_loss_dict, learning_rate, iteration, *rest, **named)
        self.heartbeat.enter("step", iteration)
        return result

    def post_training_step_callbacks(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Validates, where the step is due."""
        validation, step = self.recipe.validation, self.heartbeat.step
        if step % validation.interval and step != self.recipe.schedule.steps:
            return original(*values, **named)
        with self.heartbeat.during("validation"):
            return original(*values, **named)

    def save_checkpoint_and_time(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Saves."""
        with self.heartbeat.during("save"):
            return original(*values, **named)

    def maybe_finalize_async_save(
        self, original: Callable[..., Any], blocking: bool = False, *rest: Any, **named: Any
    ) -> Any:
        """Waits for a save in the background."""
        if not blocking:
            return original(blocking, *rest, **named)
        with self.heartbeat.during("save"):
            return original(blocking, *rest, **named)
