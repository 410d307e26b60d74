"""Spoilt steps: what counts as one, and the list of steps whose batch is skipped. Needs no torch.

A step whose gradient norm is not finite, or exceeds the recipe's bound, has spoilt the weights. The norm is
reduced over all ranks, so all of them see it at the same step without another collective. The launch ends
there, before anything is written; the next one starts from the latest complete checkpoint and skips that
step's batch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.base.manifest import now
from emma.recipes.schema import Recipe
from emma.tools.runs.fence import Fence

__all__ = ["Rewind", "recorded_skips", "record_skip", "spoilt", "steps_to_skip"]


class Rewind(Exception):  # noqa: N818  not an error: it asks the launcher for another launch
    """Training goes back to the latest complete checkpoint and skips the batch of `step`."""

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"step {step}: {reason}")


def spoilt(grad_norm: float | None, bound: float | None) -> str | None:
    """Why a step must be undone, or None.

    Args:
        grad_norm: global gradient norm before clipping; None where clipping is off and Megatron does the
            checking.
        bound: `safety.max_grad_norm`.
    """
    if grad_norm is None:
        return None
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    if bound is not None and grad_norm > bound:
        return f"the gradient norm {grad_norm:.4g} is above safety.max_grad_norm {bound:g}"
    return None


def recorded_skips(path: Path) -> list[dict[str, Any]]:
    """Records of `skipped.json`: step, reason, launch, time."""
    return list(read_json(path)["steps"]) if path.is_file() else []


def record_skip(path: Path, rewind: Rewind, fence: Fence, allowed: int) -> None:
    """Adds a step to `skipped.json`.

    Raises:
        UserError: the run has gone back `allowed` times already.
    """
    records = recorded_skips(path)
    records.append({"step": rewind.step, "reason": rewind.reason, "launch": fence.number, "time": now()})
    if len(records) > allowed:
        steps = ", ".join(str(record["step"]) for record in records)
        raise UserError(
            f"{rewind}; the run has now gone back {len(records)} times (steps {steps}), but safety.rewinds allows {allowed}. "
            "Fix: look at the learning rate and at the data of these steps; raise safety.rewinds to keep skipping"
        )
    fence.write_json(path, {"steps": records})


def steps_to_skip(recipe: Recipe, path: Path) -> list[int]:
    """Steps whose batch is read but not trained on: the recipe's and the recorded ones, ascending."""
    return sorted({*recipe.safety.skip_steps, *(record["step"] for record in recorded_skips(path))})
