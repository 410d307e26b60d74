"""The session of one rank: its parts, in the order in which they answer the seams of Megatron's loop.

At each seam the parts are nested, the first of the list outermost. In megatron-core 0.19.2 that makes

| seam                           | parts, outermost first                                                          |
|--------------------------------|---------------------------------------------------------------------------------|
| `load_checkpoint`              | `Loading` `MainWeights` `Phase`                                                 |
| `train`                        | `MainWeights` `SavedWeights` `Frozen` `Curve` `Trial` `Skips` `DividedAttention` `Reference` `Guard` `Validation` `Metrics` |
| `dummy_train_step`             | `Skips`                                                                         |
| `training_log`                 | `Pulse` `Skips` `Stragglers` `Metrics`                                          |
| `post_training_step_callbacks` | `Pulse` `Validation`                                                            |
| `checkpoint_and_decide_exit`   | `Trial` `Guard` `SaveAndStop`                                                   |
| `save_checkpoint_and_time`     | `Pulse` `Frozen` `Metrics` `Claim` `Space` `Marks`                              |
| `maybe_finalize_async_save`    | `Pulse` `Marks`                                                                 |
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

from megatron.training import training

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.tools.runs.heartbeat import Heartbeat
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.training.dataset import MixInfo
from emma.tools.training.forward import ForwardStep
from emma.tools.training.session.claim import Claim
from emma.tools.training.session.clock import Clock
from emma.tools.training.session.context import DividedAttention
from emma.tools.training.session.curve import Curve
from emma.tools.training.session.data import Datasets
from emma.tools.training.session.frozen import Frozen
from emma.tools.training.session.guard import Guard
from emma.tools.training.session.loading import Loading
from emma.tools.training.session.main_weights import MainWeights
from emma.tools.training.session.marks import Marks
from emma.tools.training.session.metrics import Metrics
from emma.tools.training.session.phase import Phase
from emma.tools.training.session.pulse import Pulse
from emma.tools.training.session.reference import Reference
from emma.tools.training.session.save_and_stop import SaveAndStop
from emma.tools.training.session.saved_weights import SavedWeights
from emma.tools.training.session.skips import Skips
from emma.tools.training.session.space import Space
from emma.tools.training.session.stragglers import Stragglers
from emma.tools.training.session.trial import Trial
from emma.tools.training.session.validation import Validation

__all__ = ["SEAMS", "Session", "answers", "install"]

SEAMS = {
    "load_checkpoint": ("ddp_model", "optimizer", "opt_param_scheduler"),
    "train": (
        *("forward_step_func", "model", "optimizer", "opt_param_scheduler", "train_data_iterator"),
        *("valid_data_iterator", "process_non_loss_data_func", "config", "checkpointing_context"),
    ),
    "dummy_train_step": ("data_iterator",),
    "training_log": (
        *("loss_dict", "total_loss_dict", "learning_rate", "iteration", "loss_scale", "report_memory_flag"),
        *("skipped_iter", "grad_norm"),
    ),
    "post_training_step_callbacks": ("model", "optimizer", "opt_param_scheduler", "iteration"),
    "checkpoint_and_decide_exit": ("model", "optimizer", "opt_param_scheduler", "iteration"),
    "save_checkpoint_and_time": ("iteration", "model"),
    "maybe_finalize_async_save": ("blocking",),
}
"""Each seam with the leading parameters that the parts rely on."""


class Session:
    """What one rank hands to `pretrain` (`datasets`, `forward_step`), and the parts around it."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, launch: Launch, mix: MixInfo, heartbeat: Heartbeat
    ) -> None:
        self.datasets, self.forward_step = Datasets(recipe, mix), ForwardStep()
        fence, clock = run.fence(launch), Clock()
        claim = Claim(fence)
        self.guard = Guard(recipe, run, self.datasets, fence)
        self.parts = (
            Pulse(recipe, heartbeat),
            Loading(run, launch),
            MainWeights(launch),
            SavedWeights(),
            Frozen(recipe),
            Phase(launch),
            Curve(recipe),
            Trial(launch),
            Skips(recipe, run, launch),
            DividedAttention(recipe),
            Reference(recipe, run, launch, self.datasets),
            self.guard,
            Validation(recipe, run, mix, self.datasets, claim, clock, self.guard),
            Stragglers(recipe, run, self.forward_step, claim),
            Metrics(recipe, run, self.forward_step, claim, clock),
            claim,
            Space(recipe, run),
            Marks(recipe, run, fence, mix),
            SaveAndStop(run),
        )

    def install(self) -> None:
        """Puts the parts around the seams of the loop.

        Raises:
            UserError: this Megatron's loop is not the one that the seams were written for.
        """
        install(self.parts)


def answers(parts: Sequence[object], seam: str) -> list[object]:
    """The parts that answer a seam, outermost first."""
    return [part for part in parts if hasattr(part, seam)]


def install(parts: Sequence[object]) -> None:
    """Replaces each seam in `megatron.training.training` by its parts around the original.

    Raises:
        UserError: a seam is missing or has other parameters than in `SEAMS`.
    """
    for seam, parameters in SEAMS.items():
        original = getattr(training, seam, None)
        known = tuple(inspect.signature(original).parameters) if callable(original) else ()
        if known[: len(parameters)] != parameters:
            raise UserError(
                f"megatron.training.training.{seam}{known} is not the function of megatron-core 0.19.2. "
                "Fix: install the pinned version (requirements.lock)"
            )
        wrapped = original
        for part in reversed(answers(parts, seam)):
            wrapped = functools.partial(getattr(part, seam), wrapped)
        setattr(training, seam, functools.wraps(original)(wrapped))  # type: ignore[arg-type]
