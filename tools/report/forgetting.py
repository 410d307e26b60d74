"""What training cost: English and the high-resource languages, on held-out text and every benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emma.tools.evaluation.averages import ENGLISH_GROUP
from emma.tools.evaluation.measures import Metric, metric
from emma.tools.report.benchmarks import BenchmarkView
from emma.tools.report.records import RunRecord

__all__ = ["ForgettingRow", "forgetting_rows"]

_GROUPS = (ENGLISH_GROUP, "high")


@dataclass(frozen=True)
class _Cell:
    value: float
    change: float
    counts: dict[str, int]


@dataclass(frozen=True)
class ForgettingRow:
    """One measure on English or on the high-resource languages: every run's value and its change against its
    base.

    `first` marks the first row of a measure.
    """

    title: str
    group: str
    metric: Metric
    base: float | None
    cells: list[_Cell | None]
    first: bool


def forgetting_rows(runs: Sequence[RunRecord], views: Sequence[BenchmarkView]) -> list[ForgettingRow]:
    """Rows of the panel, held-out text first; empty if nothing was compared with a base."""
    rows = [_heldout_row(runs, group) for group in _GROUPS]
    rows += [_benchmark_row(view, group) for view in views for group in _GROUPS]
    found = [row for row in rows if row and any(row.cells)]
    return [
        ForgettingRow(
            row.title, row.group, row.metric, row.base, row.cells, not n or found[n - 1].title != row.title
        )
        for n, row in enumerate(found)
    ]


def _heldout_row(runs: Sequence[RunRecord], group: str) -> ForgettingRow | None:
    cells: list[_Cell | None] = []
    base = None
    for run in runs:
        found = next(
            (
                row
                for row in (run.gains["groups"] if run.gains else ())
                if row["kind"] == "monolingual" and row["group"] == group
            ),
            None,
        )
        if found is None:
            cells.append(None)
            continue
        base = found["base"] if base is None else base
        ties = found["languages"] - found["wins"] - found["losses"]
        counts = {"win": found["wins"], "tie": ties, "loss": found["losses"]}
        cells.append(_Cell(found["trained"], found["difference"], counts))
    return ForgettingRow("Held-out text", group, metric("bits_per_byte"), base, cells, True)


def _benchmark_row(view: BenchmarkView, group: str) -> ForgettingRow | None:
    of = next((row for row in view.groups if row.group == group), None)
    if of is None:
        return None
    cells: list[_Cell | None] = []
    for cell in of.cells:
        value, change, counts = cell or (0.0, None, {})
        cells.append(None if change is None else _Cell(value, change, counts))
    return ForgettingRow(f"{view.title}, {view.metric.name}", group, view.metric, of.base, cells, True)
