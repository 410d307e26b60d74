"""What is known about a benchmark's outputs besides its scores: their language, and learned metrics of translations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from emma.tools.evaluation.measures import Metric, metric
from emma.tools.evaluation.quality.seen import UNSEEN, quality_table
from emma.tools.evaluation.results import Result
from emma.tools.languages.codes import language
from emma.tools.report.records import RunRecord
from emma.tools.report.verdicts import interval, latest

__all__ = ["LEARNED", "OutputCell", "OutputColumn", "Outputs", "outputs_of", "wilson"]

LEARNED = tuple(quality_table()["metrics"])
"""Learned metrics of translations."""


@dataclass(frozen=True)
class OutputCell:
    """A language's value with its 95 % interval, in the displayed unit; not `valid` where the metric's encoder has not
    seen the languages."""

    value: float
    text: str
    interval: str
    valid: bool


@dataclass(frozen=True)
class OutputColumn:
    """A metric of a model: cells by language, their mean over `valid` languages but English, and how many are not."""

    metric: Metric
    model: str
    cells: dict[str, OutputCell]
    mean: str
    valid: int
    invalid: int


@dataclass(frozen=True)
class Outputs:
    """Columns of a benchmark, its languages, and whether only the script of outputs was looked at."""

    columns: list[OutputColumn]
    languages: list[str]
    script_only: bool


def outputs_of(name: str, runs: Sequence[RunRecord]) -> Outputs:
    """Language and learned metrics of a benchmark's outputs, of each run's base and latest model."""
    columns: list[OutputColumn] = []
    codes: dict[str, None] = {}
    keys: dict[str, None] = {}
    models: dict[tuple[str, str], list[Result]] = {}
    for run in runs:
        for role in ("base", "trained"):
            model = latest(run, role)
            if model is None:
                continue
            label = "base" if role == "base" else run.name
            rows = [row for row in run.results if (row.model, row.benchmark) == (model.name, name)]
            if rows:
                models.setdefault((label, model.name), rows)
            keys |= dict.fromkeys(row.metric for row in rows)
    shown = [key for key in keys if metric(key).kind == "language" or key == "reference_in_language"]
    shown += [key for key in LEARNED if key in keys or key + UNSEEN in keys]
    for key in shown:
        for (label, _), rows in models.items():
            cells = {row.language: _cell(row) for row in rows if row.metric in (key, key + UNSEEN)}
            if not cells:
                continue
            codes |= dict.fromkeys(cells)
            valid = [
                cell.value for code, cell in cells.items() if cell.valid and not language(code).is_english
            ]
            columns.append(
                OutputColumn(
                    metric(key),
                    label,
                    cells,
                    metric(key).show(sum(valid) / len(valid) if valid else None),
                    len(valid),
                    sum(not cell.valid for cell in cells.values()),
                )
            )
    return Outputs(columns, sorted(codes), "off_target_rate" in keys and "in_language" not in keys)


def _cell(row: Result) -> OutputCell:
    of = metric(row.metric)
    share = of.kind in ("language", "baseline")
    found = wilson(row.value, row.n) if share else _around(row)
    text = f"{of.show(found[0])} … {of.show(found[1])}" if found else ""
    return OutputCell(row.value, of.show(row.value), text, of.kind != "unseen")


def _around(row: Result) -> tuple[float, float] | None:
    reach = interval(row.value, row.error, row.n)
    return (reach[0], reach[1]) if reach else None


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` (Wilson 1927), which neither leaves 0 to 1 nor is empty at its ends."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)
