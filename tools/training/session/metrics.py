"""Step metrics: loss, gradient norm, learning rate, speed, memory and data wait, every `logging.interval`
steps.

Answers `train` (before the loop: starts the clock), `training_log` (around Megatron's log: collects, then writes) and
`save_checkpoint_and_time` (around everything: pauses the clock). The format is in `tools/runs/metrics.py`. TensorBoard
gets its steps from Megatron itself, by the arguments of `_output` in `tools/training/arguments.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.training import get_args, training

from emma.recipes.devices import device
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.forward import LOSS, ForwardStep
from emma.tools.training.session.claim import Claim
from emma.tools.training.session.clock import Clock
from emma.tools.training.session.weights_and_biases import log_to_wandb

__all__ = ["Metrics"]


class Metrics:
    """Collects the steps since the last row of `metrics.jsonl`; the last rank writes the next one."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, forward_step: ForwardStep, claim: Claim, clock: Clock
    ) -> None:
        self.recipe, self.run, self.forward_step = recipe, run, forward_step
        self.claim, self.clock = claim, clock
        self._flops = flops_per_token(recipe.model, recipe.batch.sequence_length, "causal")
        self._peak = device(recipe.cluster.device).peak_tflops(recipe.precision)
        self._learning_rate: float | None = None
        self._losses: list[torch.Tensor] = []
        self._steps = self._skipped = 0

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: Any,
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Notes the first step's learning rate, starts the clock, trains."""
        self._learning_rate = training.get_canonical_lr_for_logging(optimizer.param_groups)
        self.clock.restart()
        return original(forward_step, model, optimizer, *rest, **named)

    def training_log(
        self,
        original: Callable[..., Any],
        loss_dict: dict[str, torch.Tensor],
        total_loss_dict: Any,
        learning_rate: float | None,
        iteration: int,
        loss_scale: Any,
        report_memory_flag: Any,
        skipped_iter: int,
        grad_norm: float | None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Collects the step, lets Megatron log, and writes a row where the step is due."""
        if LOSS in loss_dict:
            self._losses.append(loss_dict[LOSS].detach())
        self._steps += 1
        self._skipped += int(skipped_iter)
        given = (loss_dict, total_loss_dict, learning_rate, iteration, loss_scale, report_memory_flag)
        result = original(*given, skipped_iter, grad_norm, *rest, **named)
        if iteration % self.recipe.logging.interval == 0 or iteration == self.recipe.schedule.steps:
            self._write(iteration, grad_norm)
        # The rate that Megatron passes is already the next step's.
        self._learning_rate = learning_rate
        return result

    def save_checkpoint_and_time(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Saves without counting it as training."""
        with self.clock.paused():
            return original(*values, **named)

    def _write(self, iteration: int, grad_norm: float | None) -> None:
        """Writes a row and starts collecting again; stops all ranks if the claim is lost."""
        seconds = self.clock.seconds
        # The slowest rank's wait and the fullest card's memory are the ones that matter.
        lost = training.is_last_rank() and not self.claim.held()
        wait, memory = self.forward_step.data_wait_seconds / self._steps, torch.cuda.max_memory_allocated()
        facts = torch.tensor([wait, float(memory), float(lost)], dtype=torch.float32, device="cuda")
        torch.distributed.all_reduce(facts, op=torch.distributed.ReduceOp.MAX)
        if facts[2].item():
            raise self.claim.lost(iteration)
        if training.is_last_rank():
            if not self.claim.held():  # lost while this rank waited for the others
                raise self.claim.lost(iteration)
            row = self._row(iteration, grad_norm, seconds, float(facts[0]), float(facts[1]))
            append_metrics(self.run.metrics_file, row, self.claim.fence.append)
            log_to_wandb(row, iteration)
        self._losses.clear()
        self._steps = self._skipped = 0
        self.forward_step.data_wait_seconds = 0.0
        self.clock.restart()

    def _row(
        self, iteration: int, grad_norm: float | None, seconds: float, wait: float, memory: float
    ) -> dict[str, float | None]:
        """A row of `metrics.jsonl`; `wait` is in seconds per step, `memory` in bytes."""
        args = get_args()
        speed = self._steps * self.recipe.tokens_per_step / seconds / args.world_size
        tflops = speed * self._flops / 1e12
        return {
            "step": iteration,
            "consumed_samples": args.consumed_train_samples,
            "consumed_tokens": args.consumed_train_samples * self.recipe.batch.sequence_length,
            "loss": float(torch.stack([loss.reshape(()) for loss in self._losses]).double().mean()),
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "learning_rate": self._learning_rate,
            "tokens_per_second_per_gpu": speed,
            "tflops_per_gpu_causal": tflops,
            "mfu": None if self._peak is None else tflops / self._peak,
            "memory_gib": memory / 2**30,
            "data_wait_ms": wait * 1000,
            "skipped": self._skipped,
        }
