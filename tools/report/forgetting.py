"""What training cost: English, the high-resource languages and code, on held-out text and every benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emma.tools.evaluation.averages import ENGLISH_GROUP
from emma.tools.evaluation.groups import ENGLISH
from emma.tools.evaluation.measures import Metric, metric
from emma.tools.report.benchmarks import BenchmarkView
from emma.tools.report.records import RunRecord
from emma.tools.report.verdicts import interval

__all__ = ["ForgettingRow", "forgetting_rows"]

_GROUPS = (ENGLISH_GROUP, "high")
_HELDOUT = (("monolingual", ENGLISH_GROUP), ("monolingual", "high"), ("code", "all"))
"""Kinds of held-out text and their groups; code has one, which counts programming languages."""


@dataclass(frozen=True)
class _Cell:
    value: float
    change: float
    counts: dict[str, int]
    verdict: str | None = None
    interval: list[float] | None = None


@dataclass(frozen=True)
class ForgettingRow:
    """One measure on English, on the high-resource languages or on code: every run's value and its change against
    its base.

    English is one language, so its cells have a verdict (`win`, `tie`, `loss`; None if there was too little to test) and a
    95 % interval; those of groups count their languages' verdicts. `first` marks the first row of a measure.
    """

    title: str
    group: str
    metric: Metric
    base: float | None
    cells: list[_Cell | None]
    first: bool


def forgetting_rows(runs: Sequence[RunRecord], views: Sequence[BenchmarkView]) -> list[ForgettingRow]:
    """Rows of the panel, held-out text first; empty if nothing was compared with a base."""
    rows = [_heldout_row(runs, kind, group) for kind, group in _HELDOUT]
    rows += [_benchmark_row(view, group) for view in views for group in _GROUPS]
    found = [row for row in rows if row and any(row.cells)]
    return [
        ForgettingRow(
            row.title, row.group, row.metric, row.base, row.cells, not n or found[n - 1].title != row.title
        )
        for n, row in enumerate(found)
    ]


def _heldout_row(runs: Sequence[RunRecord], kind: str, group: str) -> ForgettingRow | None:
    cells: list[_Cell | None] = []
    base = None
    for run in runs:
        found = next(
            (
                row
                for row in (run.gains["groups"] if run.gains else ())
                if row["kind"] == kind and row["group"] == group
            ),
            None,
        )
        if found is None:
            cells.append(None)
            continue
        base = found["base"] if base is None else base
        ties = found["languages"] - found["wins"] - found["losses"]
        counts = {"win": found["wins"], "tie": ties, "loss": found["losses"]}
        single = [
            r
            for r in (run.gains or {})["languages"]
            if (r["kind"], r["language"]) == ("monolingual", ENGLISH)
        ]
        cells.append(_Cell(found["trained"], found["difference"], counts, *_single(group, single)))
    shown = group if kind == "monolingual" else kind
    return ForgettingRow("Held-out text", shown, metric("bits_per_byte"), base, cells, True)


def _benchmark_row(view: BenchmarkView, group: str) -> ForgettingRow | None:
    of = next((row for row in view.groups if row.group == group), None)
    if of is None:
        return None
    cells: list[_Cell | None] = []
    for cell, run in zip(of.cells, view.cells, strict=True):
        value, change, counts = cell or (0.0, None, {})
        english = run.change.english if run and run.change else None
        single = [{**asdict(english), "n": english.units}] if english else []
        cells.append(None if change is None else _Cell(value, change, counts, *_single(group, single)))
    return ForgettingRow(f"{view.title}, {view.metric.name}", group, view.metric, of.base, cells, True)


def _single(group: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[float] | None]:
    """Verdict and interval of English's test, if the group is English and there is one test."""
    if group != ENGLISH_GROUP or len(rows) != 1:
        return None, None
    (row,) = rows
    tested = row["verdict"] if row["p"] is not None else None
    return tested, interval(row["difference"], row["error"], row["n"])
