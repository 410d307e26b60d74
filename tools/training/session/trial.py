"""A trial: the first steps of a run, for their losses alone (`emma train RUN --prove N` compares them).

Answers `train` (before the loop) and `checkpoint_and_decide_exit`, in place of Megatron's function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_signal_handler, get_timers, training

from emma.tools.runs.run_folder import Launch

__all__ = ["Trial"]


class Trial:
    """Acts where the launch is a trial: no step is saved but, from scratch, step 0, whose weights nobody has."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: Any,
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Saves step 0 where it is asked for, then trains."""
        if self.launch.trial is not None and self.launch.load.mode == "scratch":
            scheduler, data, context = rest[0], rest[1], rest[5]
            # The save stops and starts the clock that the loop has not started yet.
            clock = get_timers()("interval-time", log_level=0)
            clock.start(barrier=True)
            training.save_checkpoint_and_time(
                0, model, optimizer, scheduler, 0, context, train_data_iterator=data
            )
            clock.stop()
            clock.reset()
        return original(forward_step, model, optimizer, *rest, **named)

    def checkpoint_and_decide_exit(
        self,
        original: Callable[..., bool],
        model: Any,
        optimizer: Any,
        scheduler: Any,
        iteration: int,
        *rest: Any,
    ) -> bool:
        """Leaves the loop after the last step of a trial, or after a signal."""
        if self.launch.trial is None:
            return original(model, optimizer, scheduler, iteration, *rest)
        return iteration >= self.launch.trial or any(get_signal_handler().signals_received())
