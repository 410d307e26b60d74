"""Validation: the loss of each group, at the recipe's interval, after the last step and, if asked for, before
the first.

Answers `train` (before the loop) and `post_training_step_callbacks` (before Megatron's function). How a loss
is computed is in `tools/training/evaluator.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_args, get_timers, training

from emma.recipes.schema import Recipe
from emma.tools.runs.forgetting import Look
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.dataset import MixInfo
from emma.tools.training.session.alerts import alert
from emma.tools.training.session.claim import Claim
from emma.tools.training.session.clock import Clock
from emma.tools.training.session.data import Datasets
from emma.tools.training.session.guard import Guard
from emma.tools.training.session.weights_and_biases import log_to_wandb

__all__ = ["Validation"]


class Validation:
    """Evaluates, and writes to `metrics.jsonl`, TensorBoard, Weights & Biases and standard output."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        mix: MixInfo,
        datasets: Datasets,
        claim: Claim,
        clock: Clock,
        guard: Guard,
    ) -> None:
        self.recipe, self.run, self.mix, self.datasets = recipe, run, mix, datasets
        self.claim, self.clock, self.guard = claim, clock, guard

    def train(
        self, original: Callable[..., Any], forward_step: Any, model: Any, *rest: Any, **named: Any
    ) -> Any:
        """Validates at step 0, then trains."""
        if get_args().iteration == 0 and self.recipe.validation.at_start:
            self._validate(model, 0)
        return original(forward_step, model, *rest, **named)

    def post_training_step_callbacks(
        self,
        original: Callable[..., Any],
        model: Any,
        optimizer: Any,
        scheduler: Any,
        iteration: int,
        *rest: Any,
    ) -> Any:
        """Validates where the step is due."""
        if iteration % self.recipe.validation.interval == 0 or iteration == self.recipe.schedule.steps:
            timers, args = get_timers(), get_args()
            timers("interval-time").stop()
            gathers = training.should_disable_forward_pre_hook(args)
            if gathers:
                training.disable_forward_pre_hook(model, optimizer=optimizer)
            self._validate(model, iteration)
            if gathers:
                training.enable_forward_pre_hook(model)
            timers("interval-time", log_level=0).start(barrier=True)
        return original(model, optimizer, scheduler, iteration, *rest)

    def _validate(self, model: Any, iteration: int) -> None:
        evaluator = self.datasets.evaluator
        if evaluator is None or not evaluator.groups:
            return
        with self.clock.paused():
            self.claim.check(iteration)
            losses = evaluator(model)
            looks = self.guard.look(iteration)
            if training.is_last_rank():
                self._write(losses, looks, iteration)

    def _write(self, losses: dict[str, float], looks: list[Look], iteration: int) -> None:
        append = self.claim.fence.append
        row: dict[str, Any] = {"step": iteration, "validation": losses}
        if looks:
            row["guard"] = [look.to_dict() for look in looks]
        append_metrics(self.run.metrics_file, row, append)
        alert(self.recipe, self.run, self.mix, iteration, losses, append)
        writer = training.get_tensorboard_writer()
        if writer:
            for name, loss in losses.items():
                writer.add_scalar(f"validation/{name}", loss, iteration)
            for look in looks:
                if look.rise is not None:
                    writer.add_scalar(f"guard/{look.group}", look.rise, iteration)
        rises = {f"guard/{look.group}": look.rise for look in looks}
        log_to_wandb({**{f"validation/{name}": loss for name, loss in losses.items()}, **rises}, iteration)
        mean = sum(losses.values()) / len(losses)
        print(f"validation at step {iteration}: mean over {len(losses)} groups {mean:.4f}", flush=True)
        for look in looks:
            if look.forgotten:
                print(f"GUARD: {look}", flush=True)
