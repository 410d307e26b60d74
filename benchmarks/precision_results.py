"""What the runs of a benchmark of precisions measured, and tables of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emma.recipes.schema import Recipe

__all__ = ["Result", "loss_table", "result_of", "result_table"]


@dataclass(frozen=True)
class Result:
    """One precision; rates are a GPU's."""

    precision: str
    layers: int
    tokens_per_second: float
    tflops_causal: float
    mfu: float | None
    memory_gib: float
    loss_difference: float


def result_of(
    recipe: Recipe, rows: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], warm: int
) -> Result:
    """Result of a run from the lines of its `metrics.jsonl`.

    Args:
        recipe: the run.
        rows: its logged steps.
        baseline: those of the BF16 run.
        warm: first steps that are not timed.
    """
    timed = rows[warm:]
    last = len(rows) - max(1, len(rows) // 4)
    mfu = [row["mfu"] for row in timed if row["mfu"] is not None]
    return Result(
        precision=recipe.precision.name,
        layers=recipe.model.layers,
        tokens_per_second=statistics.median(row["tokens_per_second_per_gpu"] for row in timed),
        tflops_causal=statistics.median(row["tflops_per_gpu_causal"] for row in timed),
        mfu=statistics.median(mfu) if mfu else None,
        memory_gib=max(row["memory_gib"] for row in rows),
        loss_difference=_mean_loss(rows[last:]) - _mean_loss(baseline[last:]),
    )


def _mean_loss(rows: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(row["loss"] for row in rows)


def result_table(results: Sequence[Result]) -> str:
    """Markdown table, with each speed relative to the first result's."""
    lines = [
        "| precision | layers | tokens/s/GPU | speed-up | TFLOP/s (causal) | MFU | memory, GiB | loss − BF16's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        mfu = "–" if result.mfu is None else f"{result.mfu:.1%}"
        lines.append(
            f"| {result.precision} | {result.layers} | {result.tokens_per_second:,.0f} "
            f"| {result.tokens_per_second / results[0].tokens_per_second:.2f} | {result.tflops_causal:.1f} | {mfu} "
            f"| {result.memory_gib:.1f} | {result.loss_difference:+.4f} |"
        )
    return "\n".join(lines)


def loss_table(losses: Mapping[str, Sequence[float]], points: int = 10) -> str:
    """Markdown table of loss over steps: means over as many equal stretches as points."""
    names, steps = list(losses), len(next(iter(losses.values())))
    lines = [f"| steps | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for point in range(min(points, steps)):
        begin, end = point * steps // min(points, steps), (point + 1) * steps // min(points, steps)
        means = " | ".join(f"{statistics.fmean(losses[name][begin:end]):.4f}" for name in names)
        lines.append(f"| {begin + 1}–{end} | {means} |")
    return "\n".join(lines)
