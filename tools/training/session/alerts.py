"""Alerts: a validation group that has lost more since the run's first validation than the recipe allows.

Answers no seam: `Validation` calls it on the last rank after each validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from emma.recipes.schema import Recipe
from emma.tools.mix.layout import MixInfo
from emma.tools.runs.metrics import append_metrics, read_metrics
from emma.tools.runs.run_folder import RunFolder

__all__ = ["alert"]


def alert(
    recipe: Recipe,
    run: RunFolder,
    mix: MixInfo,
    iteration: int,
    losses: Mapping[str, float],
    append: Callable[[Path, bytes], None],
) -> None:
    """Writes to `alerts.jsonl` and standard output; the run continues.

    Args:
        losses: nats per token by group, of the validation just written to `metrics.jsonl`.
        append: `Fence.append`.
    """
    first = next(iter(read_metrics(run.metrics_file)[1]))
    for group, bound in recipe.validation.alert_above.items():
        nats = losses[group] - first["validation"][group]
        rise = nats / math.log(2) / mix.groups[group]["bytes_per_token"]
        if rise > bound and iteration > first["step"]:
            row = {"step": iteration, "group": group, "rise": rise, "above": bound, "since": first["step"]}
            append_metrics(run.alerts_file, row, append)
            print(
                f"ALERT: {group} is {rise:.4f} bits per byte worse than at step {first['step']}", flush=True
            )
