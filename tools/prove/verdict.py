"""Two records of the same steps compared: what counts as equal, and the table. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from emma.recipes.schema import Recipe
from emma.tools.prove.logged import Logged

__all__ = ["Row", "Verdict", "compare_rows", "default_tolerance", "norm_tolerance"]

# Nats. Measured on the demo's first 20 steps: 1.4e-6 in FP32 at TP2·PP2, 9.5e-3 in BF16. FP8 keeps 3 bits of a
# number where BF16 keeps 7; its bound is a choice, not a measurement.
_TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp8": 1e-1}
_RATE = 1e-9
"""Relative; both sides compute the rate in double precision, in another order."""


def norm_tolerance(tolerance: float) -> float:
    """Largest relative difference of a gradient norm: 30 times that of a loss, up to 0.2 or the tolerance itself.

    On a CPU, Megatron adds up the squares of a rank's gradients in FP32, one after another, and loses the small
    ones: up to 5.7e-5 on the demo, and more with larger matrices.
    """
    return min(30 * tolerance, max(0.2, tolerance))


def default_tolerance(recipe: Recipe) -> float:
    """Largest difference of a loss, in nats, that two correct loops may have in the run's number formats."""
    optimizer = recipe.optimizer
    states = {optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype, optimizer.main_params_dtype}
    if recipe.precision.fp8 is not None or "fp8" in states:
        return _TOLERANCES["fp8"]
    return _TOLERANCES["fp32" if recipe.precision.compute == "fp32" and states == {"fp32"} else "bf16"]


@dataclass(frozen=True)
class Row:
    """A logged step on both sides.

    Attributes:
        step: the step of the row; its loss is the mean over the steps since the row before.
        loss, own_loss: Megatron's and the independent loop's, in nats.
        grad_norm, own_grad_norm: of the row's step; Megatron's is None where clipping is off.
        learning_rate, own_learning_rate: that the row's step used.
        samples, own_samples: read from the mix's start to the end of the step.
        tokens: labels that count, in the steps of the row.
    """

    step: int
    loss: float
    own_loss: float
    grad_norm: float | None
    own_grad_norm: float
    learning_rate: float
    own_learning_rate: float
    samples: int
    own_samples: int
    tokens: int

    @property
    def loss_difference(self) -> float:
        """Nats."""
        return self.loss - self.own_loss

    @property
    def norm_difference(self) -> float:
        """Relative; 0 where Megatron has no norm."""
        if self.grad_norm is None:
            return 0.0
        return (self.grad_norm - self.own_grad_norm) / max(self.own_grad_norm, 1e-30)

    @property
    def rate_difference(self) -> float:
        """Relative, or absolute where the independent loop's rate is 0."""
        return (self.learning_rate - self.own_learning_rate) / (self.own_learning_rate or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Both sides, and their differences."""
        differences = {
            "loss_difference": self.loss_difference,
            "grad_norm_difference": self.norm_difference,
            "learning_rate_difference": self.rate_difference,
        }
        return {**vars(self), **differences}

    def faults(self, tolerance: float) -> list[str]:
        """What differs by more than rounding. A difference that is not a number is a fault."""
        found = []
        if not abs(self.loss_difference) <= tolerance:
            found.append("loss")
        if not abs(self.norm_difference) <= norm_tolerance(tolerance):
            found.append("grad norm")
        if not abs(self.rate_difference) <= _RATE:
            found.append("learning rate")
        if self.samples != self.own_samples:
            found.append("samples")
        return found


def compare_rows(recipe: Recipe, logged: Logged, own: Mapping[int, Any], first: int, last: int) -> list[Row]:
    """Megatron's rows of steps `first` + 1 to `last` beside the independent loop's steps.

    Args:
        recipe: the run's recipe.
        logged: Megatron's rows.
        own: the independent loop's steps (`loop.Step`), by step; skipped steps have none.
        first: the step before the first.
        last: the last step of the independent loop.
    """
    rows = []
    for step, row in logged.rows.items():
        if not first < step <= last or logged.before[step] < first:
            continue
        covered = [own[one] for one in range(logged.before[step] + 1, step + 1) if one in own]
        norm = row["grad_norm"] if recipe.optimizer.clip_grad else None
        rows.append(
            Row(
                step,
                float(row["loss"]),
                fmean(one.loss for one in covered),
                None if norm is None else float(norm),
                own[step].grad_norm,
                float(row["learning_rate"]),
                own[step].learning_rate,
                int(row["consumed_samples"]),
                step * recipe.batch.global_,
                sum(one.tokens for one in covered),
            )
        )
    return rows


@dataclass(frozen=True)
class Verdict:
    """The proof's result.

    Attributes:
        rows: the steps compared.
        tolerance: largest difference of a loss, in nats.
        moved: how far the updates moved the loss of the last step's batch, in nats.
        facts: what was compared with what, for the reader.
    """

    rows: Sequence[Row]
    tolerance: float
    moved: float
    facts: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether all rows agree."""
        return bool(self.rows) and not self.first_fault

    @property
    def first_fault(self) -> str:
        """The first step that differs, and in what; empty if none does."""
        for row in self.rows:
            if faults := row.faults(self.tolerance):
                return f"step {row.step}: {', '.join(faults)}"
        return ""

    @property
    def largest(self) -> dict[str, float]:
        """Largest differences: of a loss in nats, of gradient norms and rates relative."""
        return {
            "loss": max(_size(row.loss_difference) for row in self.rows),
            "grad_norm": max(_size(row.norm_difference) for row in self.rows),
            "learning_rate": max(_size(row.rate_difference) for row in self.rows),
        }

    @property
    def blind(self) -> str:
        """What these steps could not have shown; empty if they moved the loss enough."""
        if abs(self.moved) > 10 * self.tolerance:
            return ""
        return (
            f"the updates moved the loss of the last batch by {abs(self.moved):.1e} nats only, near the tolerance of "
            f"{self.tolerance:g}: data, masks, weights and rates are proven, the optimizer is not. Prove more steps, or a "
            "copy of the run with a short warm-up (name=... schedule.warmup_steps=2)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **self.facts,
            "passed": self.passed,
            "first_fault": self.first_fault or None,
            "tolerance": {
                "loss": self.tolerance,
                "grad_norm": norm_tolerance(self.tolerance),
                "learning_rate": _RATE,
            },
            "largest": self.largest,
            "moved": self.moved,
            "note": self.blind or None,
            "rows": [row.to_dict() | {"faults": row.faults(self.tolerance)} for row in self.rows],
        }

    def text(self) -> str:
        """The table, the largest differences, and the verdict."""
        head = (
            f"{'step':>6} {'tokens':>9} {'loss':>10} {'own loss':>10} {'differs':>9} "
            f"{'grad norm':>10} {'own norm':>10} {'differs':>9} {'rate':>11} {'own rate':>11}"
        )
        lines = [head, "-" * len(head)]
        for row in self.rows:
            norm = "–" if row.grad_norm is None else f"{row.grad_norm:.5f}"
            line = (
                f"{row.step:>6} {row.tokens:>9,} {row.loss:>10.6f} {row.own_loss:>10.6f} {row.loss_difference:>9.1e} "
                f"{norm:>10} {row.own_grad_norm:>10.5f} {row.norm_difference:>9.1e} "
                f"{row.learning_rate:>11.4e} {row.own_learning_rate:>11.4e}"
            )
            faults = row.faults(self.tolerance)
            lines.append(line + (f"  ≠ {', '.join(faults)}" if faults else ""))
        worst = self.largest
        lines += [
            "",
            f"largest differences: loss {worst['loss']:.1e} (tolerance {self.tolerance:g}), "
            f"grad norm {worst['grad_norm']:.1e} relative ({norm_tolerance(self.tolerance):g}), "
            f"learning rate {worst['learning_rate']:.1e} relative ({_RATE:g})",
        ]
        if self.blind:
            lines.append(f"note: {self.blind}")
        return "\n".join(lines)


def _size(difference: float) -> float:
    return math.inf if math.isnan(difference) else abs(difference)
