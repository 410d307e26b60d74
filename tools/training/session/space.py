"""Disk space: a save that would fill the disk does not begin, so that no part of a checkpoint is left.

Answers `save_checkpoint_and_time`, before the save. `slurm/space.py` checks the whole run before it is submitted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch

from emma.base.errors import UserError
from emma.base.sizes import size_text
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.cost import checkpoint_bytes
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Space"]


class Space:
    """Free space against the size of a checkpoint."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe, self.run = recipe, run

    def save_checkpoint_and_time(
        self, original: Callable[..., Any], iteration: int, *rest: Any, **named: Any
    ) -> Any:
        """Saves if there is room; otherwise stops all ranks.

        Raises:
            UserError: the disk has less space left than a checkpoint takes.
        """
        short = torch.zeros(2, dtype=torch.float64, device="cuda")
        if torch.distributed.get_rank() == 0:
            need, free = checkpoint_bytes(self.recipe), shutil.disk_usage(self.run.checkpoints).free
            if free < need:
                short[0], short[1] = need, free
        torch.distributed.broadcast(short, 0)
        if short[0].item():
            raise UserError(
                f"{self.run.checkpoints}: the checkpoint of step {iteration} needs "
                f"{size_text(int(short[0]))}, but {size_text(int(short[1]))} are free. Nothing is written. Fix: free space, or keep fewer "
                "checkpoints (checkpoint.keep), then start again from the checkpoint before"
            )
        return original(iteration, *rest, **named)
