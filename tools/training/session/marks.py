"""Completion marks and retention: a finished checkpoint gets its `complete.json`, then old checkpoints are
deleted.

Answers `save_checkpoint_and_time` (after a blocking save) and `maybe_finalize_async_save` (after a save in the
background has ended). The mark itself is in `tools/runs/checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete, prune, tracked_step
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.dataset import MixInfo

__all__ = ["Marks"]


class Marks:
    """Marks each checkpoint once, on rank 0."""

    def __init__(self, recipe: Recipe, run: RunFolder, mix: MixInfo) -> None:
        self.recipe, self.run, self.mix = recipe, run, mix
        self._marked = tracked_step(run.checkpoints)

    def save_checkpoint_and_time(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Saves, and marks what was saved unless it is still being written."""
        result = original(*values, **named)
        if not self.recipe.checkpoint.asynchronous:
            self._mark()
        return result

    def maybe_finalize_async_save(
        self, original: Callable[..., Any], blocking: bool = False, *rest: Any, **named: Any
    ) -> Any:
        """Marks the checkpoint whose writing has ended, if there is one."""
        result = original(blocking, *rest, **named)
        if self.recipe.checkpoint.asynchronous:
            self._mark()
        return result

    def _mark(self) -> None:
        """Marks the checkpoint in Megatron's tracker file, which is written when all ranks are done."""
        if torch.distributed.get_rank() != 0:
            return
        step, checkpoint = tracked_step(self.run.checkpoints), self.recipe.checkpoint
        if step is None or step == self._marked:
            return
        self._marked = step
        samples = step * self.recipe.batch.global_
        mark_complete(
            checkpoint_folder(self.run.checkpoints, step),
            step=step,
            consumed_samples=samples,
            consumed_tokens=samples * self.recipe.batch.sequence_length,
            mix=self.mix.fingerprint,
            recipe_sha256=self.recipe.sha256,
        )
        prune(self.run.checkpoints, checkpoint.keep, checkpoint.keep_every)
