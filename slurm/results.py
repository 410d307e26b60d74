"""A sweep's results: each trial's objective, the best trial, the importance of each parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.recipes.schema.sweep import Metric, Sweep, Value
from emma.slurm.sweep import SweepFolder, Trial
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder

__all__ = [
    "Result",
    "best",
    "columns",
    "importance",
    "objective_at",
    "result_of",
    "results",
    "results_text",
]


@dataclass(frozen=True)
class Result:
    """Result of a trial.

    Attributes:
        objective: value of the objective; None if the trial has none yet or it is not finite.
        constraints: value of each constraint's metric, in the sweep's order; None as above.
        violations: by how much each limit is exceeded; at most 0 if it is met, infinite without a value.
    """

    trial: Trial
    objective: float | None
    constraints: list[float | None]
    violations: list[float]
    step: int

    @property
    def feasible(self) -> bool:
        """Whether every constraint is met."""
        return all(violation <= 0 for violation in self.violations)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trial": self.trial.number,
            "state": self.trial.state,
            "parameters": self.trial.parameters,
            "objective": self.objective,
            "constraints": self.constraints,
            "feasible": self.feasible,
            "step": self.step,
            "folder": str(self.trial.folder),
        }


def _measure(
    metric: Metric, folder: Path, rows: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]]
) -> float | None:
    if metric.metric == "evaluation":
        value = _evaluated(metric, folder)
    elif metric.metric != "validation":
        value = rows[-1].get(metric.metric) if rows else None
    elif validations:
        losses = validations[-1]["validation"]
        chosen = [loss for name, loss in losses.items() if any(fnmatchcase(name, g) for g in metric.groups)]
        # JSON has no NaN: a diverged run's loss is null.
        value = sum(chosen) / len(chosen) if chosen and None not in chosen else None
    else:
        value = None
    return float(value) if value is not None and math.isfinite(value) else None


def _evaluated(metric: Metric, folder: Path) -> float | None:
    """Mean score of the trial's export over the languages that are meant; None before it is evaluated.

    Raises:
        UserError: the evaluation has no such score.
    """
    import pyarrow.parquet as pq

    file = folder / "evaluation" / "results.parquet"
    if not file.is_file():
        return None
    table = pq.read_table(file, columns=["model", "benchmark", "language", "metric", "value"]).to_pylist()
    own = [row for row in table if row["model"].startswith(f"{folder.name}/")]
    values = [
        row["value"]
        for row in own
        if row["metric"] == metric.score
        and fnmatchcase(row["benchmark"], str(metric.benchmark))
        and any(fnmatchcase(row["language"], group) for group in metric.groups)
    ]
    if not values:
        known = sorted({f"{row['benchmark']} {row['metric']}" for row in own})
        raise UserError(
            f"{file}: no {metric.score} of {metric.benchmark} for {', '.join(metric.groups)}. Fix: name one of "
            f"{', '.join(known) or 'none, since it has no row of this trial'}"
        )
    return None if None in values else sum(values) / len(values)


def result_of(sweep: Sweep, trial: Trial) -> Result:
    """A trial's result so far."""
    rows, validations = read_metrics(RunFolder(trial.folder).metrics_file)
    values, violations = [], []
    for constraint in sweep.constraints:
        value = _measure(constraint, trial.folder, rows, validations)
        values.append(value)
        if value is None:
            violations.append(math.inf)
            continue
        above = value - constraint.at_most if constraint.at_most is not None else -math.inf
        below = constraint.at_least - value if constraint.at_least is not None else -math.inf
        violations.append(max(above, below))
    objective = _measure(sweep.objective, trial.folder, rows, validations)
    return Result(trial, objective, values, violations, rows[-1]["step"] if rows else 0)


def objective_at(sweep: Sweep, folder: Path) -> dict[int, float]:
    """A run's objective after each validation, by step."""
    rows, validations = read_metrics(RunFolder(folder).metrics_file)
    found = {}
    for index, validation in enumerate(validations):
        so_far = [row for row in rows if row["step"] <= validation["step"]]
        value = _measure(sweep.objective, folder, so_far, validations[: index + 1])
        if value is not None and validation["step"] > 0:
            found[validation["step"]] = value
    return found


def results(folder: SweepFolder) -> list[Result]:
    """Results of all trials, in order."""
    return [result_of(folder.sweep, trial) for trial in folder.trials()]


def best(sweep: Sweep, found: Sequence[Result]) -> Result | None:
    """The best finished trial that meets every constraint; None if there is none."""
    candidates = [r for r in found if r.trial.state == "finished" and r.objective is not None and r.feasible]
    sign = 1 if sweep.direction == "minimize" else -1
    return min(candidates, key=lambda r: (sign * (r.objective or 0.0), r.trial.number), default=None)


def importance(sweep: Sweep, found: Sequence[Result]) -> dict[str, float]:
    """Share of the objective's variance that each parameter's values explain (η²; numbers drawn from an
    interval are binned into three equal groups). Shares of interacting parameters need not sum to 1."""
    done = [
        r for r in found if r.trial.state == "finished" and r.objective is not None and r.trial.parameters
    ]
    values = np.array([r.objective for r in done], dtype=float)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) > 1 else 0.0
    shares = {}
    for key, parameter in sweep.parameters.items():
        own = [(r.trial.parameters or {})[key] for r in done]
        if total == 0:
            shares[key] = 0.0
            continue
        groups = own if parameter.choices is not None else _thirds([float(value) for value in own])
        between = 0.0
        for group in set(groups):
            members = values[[value == group for value in groups]]
            between += len(members) * float(members.mean() - values.mean()) ** 2
        shares[key] = between / total
    return shares


def _thirds(numbers: list[float]) -> list[Value]:
    ranks = np.argsort(np.argsort(numbers))
    return [int(rank * 3 // len(numbers)) for rank in ranks]


def columns(sweep: Sweep, result: Result) -> dict[str, Any]:
    """A row of the table of results."""
    parameters = result.trial.parameters or {}
    limits = {f"constraint {index + 1}": value for index, value in enumerate(result.constraints)}
    return {
        "trial": result.trial.number,
        "state": result.trial.state,
        **{key: parameters.get(key) for key in sweep.parameters},
        "objective": result.objective,
        **limits,
        "feasible": result.feasible,
        "step": result.step,
        "folder": str(result.trial.folder),
    }


def results_text(folder: SweepFolder, found: Sequence[Result]) -> str:
    """Table of the trials, best first, and the importance of each parameter."""
    sweep, winner = folder.sweep, best(folder.sweep, found)
    sign = 1 if sweep.direction == "minimize" else -1
    ordered = sorted(found, key=lambda r: (r.objective is None, sign * (r.objective or 0.0), r.trial.number))
    header = ["trial", "state", *sweep.parameters, "objective", *(["feasible"] if sweep.constraints else [])]
    cells = [header]
    for result in ordered:
        values = columns(sweep, result)
        cells.append([_text(values[name]) for name in header])
    widths = [max(len(line[index]) for line in cells) for index in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    done = sum(result.trial.done for result in found)
    lines.append(f"{done} of {len(found)} trials have a result")
    if winner is not None:
        chosen = " ".join(f"{key}={_text(value)}" for key, value in (winner.trial.parameters or {}).items())
        lines.append(f"best: trial {winner.trial.number}, objective {winner.objective:.5f}, {chosen}")
        lines += [f"importance of {key}: {share:.0%}" for key, share in importance(sweep, found).items()]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
