"""The reference check: imported weights must have the base model's loss before a run trains them.

Answers `train`, before the first step. `tools/training/reference.py` has computed the base model's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.schema import Recipe
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.training.evaluator import Evaluator
from emma.tools.training.session.data import Datasets

__all__ = ["Reference"]


class Reference:
    """Acts where the launch starts from a base model and the recipe names `start.reference`."""

    def __init__(self, recipe: Recipe, run: RunFolder, launch: Launch, datasets: Datasets) -> None:
        self.recipe, self.run, self.launch, self.datasets = recipe, run, launch, datasets

    def train(
        self, original: Callable[..., Any], forward_step: Any, model: Any, *rest: Any, **named: Any
    ) -> Any:
        """Compares, then trains."""
        if self.launch.load.mode == "weights" and self.recipe.start.reference is not None:
            self._check(model)
        return original(forward_step, model, *rest, **named)

    def _check(self, model: Any) -> None:
        """Stops all ranks where the losses differ.

        Raises:
            UserError: a group's loss is not the base model's within `start.reference_tolerance`.
        """
        assert self.datasets.evaluator is not None
        evaluator, start = self.datasets.evaluator, self.recipe.start
        reference = read_json(self.run.reference_file)
        first = Evaluator(
            evaluator.groups, evaluator.micro_batch, evaluator.sequence_length, reference["samples"]
        )
        losses = first(model)
        worst = torch.zeros(1, dtype=torch.float64, device="cuda")
        for name, loss in losses.items():
            difference = abs(loss - reference["losses"][name])
            # NaN compares as false with everything, so it would pass.
            worst = torch.maximum(
                worst, torch.full_like(worst, difference if difference == difference else torch.inf)
            )
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        if not worst.item() <= start.reference_tolerance:
            raise UserError(
                f"the loss of {start.checkpoint} on validation samples differs from that of {start.reference} by up to "
                f"{worst.item():.4g} nats per token; start.reference_tolerance is {start.reference_tolerance:g}. "
                "Nothing was trained. Fix: import the base model again "
                f"(`emma convert hf-to-megatron {start.reference} ...`)"
            )
        if torch.distributed.get_rank() == 0:
            message = f"step 0: loss equals {start.reference}'s within {worst.item():.2g} nats per token"
            print(message, flush=True)
