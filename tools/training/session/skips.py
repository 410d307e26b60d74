"""Spoilt steps: leaving the loop at one, and passing over the batches of those known to be bad.

Answers `training_log` (before anything is logged), `dummy_train_step` (in place of Megatron's function) and `train`
(after the loop). What counts as spoilt, and the list of skipped steps, is in `tools/runs/safety.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import training

from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import tracked_step
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.runs.safety import Rewind, spoilt

__all__ = ["Skips"]


class Skips:
    """Raises `Rewind` at a spoilt step; reads the batches of `launch.skip` and does not train on them."""

    def __init__(self, recipe: Recipe, run: RunFolder, launch: Launch) -> None:
        self.recipe, self.run, self.launch = recipe, run, launch

    def training_log(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Checks the gradient norm of the step, which is the same on all ranks.

        Raises:
            Rewind: the step has spoilt the weights.
        """
        if self.recipe.optimizer.clip_grad:
            _, _, _, iteration, _, _, _, grad_norm, *_ = values
            reason = spoilt(grad_norm, self.recipe.safety.max_grad_norm)
            if reason is not None:
                raise Rewind(iteration, reason)
        return original(*values, **named)

    def dummy_train_step(self, original: Callable[..., Any], data_iterator: Any) -> None:
        """Passes over the batch of a skipped step on every rank.

        Megatron's function reads it on the first tensor-parallel rank and sends it to the others. Here each
        rank reads for itself; otherwise the others would stay one batch behind and train on different samples
        than the first from then on.
        """
        rerun = get_rerun_state_machine()
        while rerun.should_run_forward_backward(data_iterator):
            for iterator in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
                for _ in range(get_num_microbatches()):
                    next(iterator)

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: Any,
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Saves after the loop where its last step was skipped: Megatron saves neither at a skipped step nor,
        where the interval divides it, after the last one."""
        iteration, flops = original(forward_step, model, optimizer, *rest, **named)
        saved = tracked_step(self.run.fence(self.launch).saves)
        if iteration in self.launch.skip and saved != iteration:
            scheduler, data, context = rest[0], rest[1], rest[5]
            training.save_checkpoint_and_time(
                iteration, model, optimizer, scheduler, flops, context, train_data_iterator=data
            )
        return iteration, flops
