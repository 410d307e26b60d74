"""The start of a phase: weights and moments of another run, under this recipe's schedule and optimizer settings.

Answers `load_checkpoint`: changes the optimizer's state while Megatron loads it, and resets step and schedule
after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron.training import get_args

from emma.base.errors import UserError
from emma.tools.runs.run_folder import Launch

__all__ = ["Phase"]


class Phase:
    """Acts where the launch's load mode is `phase`."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch

    def load_checkpoint(
        self,
        original: Callable[..., Any],
        ddp_model: Any,
        optimizer: Any,
        scheduler: Any,
        *rest: Any,
        **named: Any,
    ) -> tuple[int, float]:
        """Loads weights and moments, and returns step 0 with no FLOPs spent."""
        if self.launch.load.mode != "phase":
            loaded: tuple[int, float] = original(ddp_model, optimizer, scheduler, *rest, **named)
            return loaded
        # Megatron tells parameter groups apart by their learning rates. With other rates it would not find
        # the checkpoint's groups; with equal ones it would keep the checkpoint's rates. It always keeps the
        # checkpoint's betas and epsilon. (Weight decay comes from the scheduler, which is the recipe's.)
        args = get_args()
        settings = {
            "max_lr": args.lr,
            "min_lr": args.min_lr,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_eps,
        }
        load = optimizer.load_state_dict
        optimizer.load_state_dict = lambda state: load(_with_settings(state, settings))
        original(ddp_model, optimizer, scheduler, *rest, **named)
        del optimizer.load_state_dict
        scheduler.num_steps = 0
        scheduler.step(increment=0)
        args.consumed_train_samples = args.consumed_valid_samples = args.skipped_train_samples = 0
        return 0, 0


def _with_settings(state: Any, settings: Mapping[str, Any]) -> Any:
    """The state of an optimizer with the given settings in each parameter group."""
    if isinstance(state, list):
        return [_with_settings(item, settings) for item in state]
    if not isinstance(state, dict):
        return state
    if "param_groups" in state:
        if any(group.get("max_lr") == 0 for group in state["param_groups"]):
            raise UserError(
                "start.checkpoint: that run trained a part of the model (train.only), so its moments are not those of a run "
                "of all weights. Fix: start.mode=weights"
            )
        return {**state, "param_groups": [{**group, **settings} for group in state["param_groups"]]}
    return {key: _with_settings(value, settings) for key, value in state.items()}
