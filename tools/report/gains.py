"""What was gained and forgotten, as charts and table rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from emma.tools.charts.figures import Curves
from emma.tools.charts.inline import Point, Series, difference_bars, line_chart, scatter
from emma.tools.evaluation.groups import ENGLISH, LANGUAGE_KINDS, order_categories
from emma.tools.evaluation.results import Result
from emma.tools.evaluation.stored import EvaluatedModel
from emma.tools.report.records import RunRecord
from emma.tools.report.training import category_colors

__all__ = [
    "FEW",
    "Bar",
    "KindGains",
    "gain_sections",
    "heldout_figures",
    "headline",
    "other_rows",
    "progress_chart",
    "score_rows",
]

_OTHER = "o7"
_UNIT = "mean bits per byte"

FEW = 12
"""With fewer languages than this, a table says more than charts."""


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from `zero`; `zero`, `left`, and `width` are percentages of the cell, `color` is a
    class."""

    zero: float
    left: float
    width: float
    color: str


@dataclass(frozen=True)
class KindGains:
    """One kind of text: rows of its group and language tables, with their bars, and its charts."""

    kind: str
    groups: list[dict[str, Any]]
    languages: list[dict[str, Any]]
    charts: list[Markup]


def _bars(values: Sequence[float]) -> list[Bar]:
    """Bars of one column, on a common scale that includes zero."""
    low, high = min([0.0, *values]), max([0.0, *values])
    span = high - low or 1.0
    zero = 100 * -low / span
    return [
        Bar(
            zero,
            zero - 100 * -value / span if value < 0 else zero,
            100 * abs(value) / span,
            "gain" if value < 0 else "loss",
        )
        for value in values
    ]


def gain_sections(gains: dict[str, Any], run: RunRecord) -> list[KindGains]:
    """Sections of the page, one per kind of text in natural languages, monolingual text first.

    Args:
        gains: content of `gains.json`.
        run: for the order of the resource categories.
    """
    kinds = [kind for kind in LANGUAGE_KINDS if any(row["kind"] == kind for row in gains["languages"])]
    return [_section(kind, gains, run) for kind in kinds]


def other_rows(gains: dict[str, Any]) -> list[dict[str, Any]]:
    """One row, with its bar, per kind of text that is not divided by language (code, papers, ...)."""
    rows = [row for row in gains["groups"] if row["kind"] not in LANGUAGE_KINDS]
    return [
        {**row, "bar": bar} for row, bar in zip(rows, _bars([r["difference"] for r in rows]), strict=True)
    ]


def _section(kind: str, gains: dict[str, Any], run: RunRecord) -> KindGains:
    languages = sorted(
        (r for r in gains["languages"] if r["kind"] == kind), key=lambda row: row["difference"]
    )
    groups = [row for row in gains["groups"] if row["kind"] == kind]
    categories = order_categories((r["category"] for r in languages if r["category"]), run.recipe.data.mix)
    colors = category_colors(categories)
    group_rows = [
        {**row, "bar": bar, "color": colors.get(row["group"])}
        for row, bar in zip(groups, _bars([row["difference"] for row in groups]), strict=True)
    ]
    language_rows = [
        {**row, "bar": bar, "color": colors.get(row["category"] or "", _OTHER)}
        for row, bar in zip(languages, _bars([row["difference"] for row in languages]), strict=True)
    ]
    return KindGains(kind, group_rows, language_rows, _charts(kind, language_rows, colors))


def _charts(kind: str, rows: list[dict[str, Any]], colors: dict[str, str]) -> list[Markup]:
    if len(rows) < FEW:
        return []
    what = "pair" if kind in ("parallel", "bilingual") else "language"
    bars = difference_bars(
        f"Change per {what}, sorted",
        [
            (
                f"{row['language']}: {row['base']:.3f} → {row['trained']:.3f} ({row['difference']:+.3f})",
                row["difference"],
                row["error"] if len(rows) <= 80 else None,
                row["color"],
            )
            for row in rows
        ],
        unit="bits per byte; below zero is better",
        height=260,
    )
    names = {row["category"]: row["color"] for row in rows if row["category"]}
    legend = [(color, name, "") for name, color in colors.items() if name in names]
    if legend and any(row["category"] is None for row in rows):
        legend.append((_OTHER, "no category", ""))
    points = [
        Point(
            f"{row['language']}: {row['base']:.3f} → {row['trained']:.3f}",
            row["base"],
            row["trained"],
            row["color"],
        )
        for row in rows
    ]
    dots = scatter(
        f"Before and after, per {what}",
        points,
        unit="bits per byte after training; below the line is better",
        x_label="bits per byte of the base",
        legend=legend,
        height=320,
    )
    return [bars, dots]


def headline(gains: dict[str, Any]) -> dict[str, Any]:
    """Figures for the top of the page: the average over monolingual text except English, and English.

    Returns:
        `all` and `english` (rows of `groups`, or None), `kind`.
    """
    kinds = [row["kind"] for row in gains["groups"]]
    kind = next((kind for kind in LANGUAGE_KINDS if kind in kinds), kinds[0] if kinds else "")
    rows = {row["group"]: row for row in gains["groups"] if row["kind"] == kind}
    return {"kind": kind, "all": rows.get("all but English"), "english": rows.get("English")}


def progress_chart(run: RunRecord) -> Markup | None:
    """Mean bits per byte of the evaluated checkpoints over steps, with English separate; None for fewer than
    two checkpoints.

    If the run started from the base's weights, the base is step 0.
    """
    series = _progress(run, "", ("s0", "s1"))
    return line_chart("Held-out text over checkpoints", series, unit=_UNIT, height=200) if series else None


def heldout_figures(runs: Sequence[RunRecord]) -> list[Curves]:
    """The same chart for several runs in one figure; none if no run has two evaluated checkpoints."""
    series = [
        line
        for place, run in enumerate(runs)
        for line in _progress(run, f"{run.name}, ", (f"s{place % 8}", f"s{(place + 4) % 8}"))
    ]
    return (
        [Curves("heldout-checkpoints", "Held-out text over checkpoints", _UNIT, tuple(series))]
        if series
        else []
    )


def _progress(run: RunRecord, prefix: str, colors: tuple[str, str]) -> list[Series]:
    at_step = [
        (model.step, model) for model in run.models if model.role == "trained" and model.step is not None
    ]
    if len(at_step) < 2:
        return []
    bases = [model for model in run.models if model.role == "base"]
    if run.recipe.start.mode == "weights" and len(bases) == 1:
        at_step.append((0, bases[0]))
    at_step.sort(key=lambda pair: pair[0])
    series = []
    for place, (name, english) in enumerate((("all but English", False), ("English", True))):
        points = [(step, _mean(run.results, model, english)) for step, model in at_step]
        drawn = [(float(step), value) for step, value in points if value is not None]
        if drawn:
            xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
            series.append(Series(f"{prefix}{name}", xs, ys, colors[place]))
    return series


def _mean(results: Sequence[Result], model: EvaluatedModel, english: bool) -> float | None:
    values = [
        row.value
        for row in results
        if row.model == model.name
        and row.benchmark == "heldout/monolingual"
        and row.metric == "bits_per_byte"
        and (row.language == ENGLISH) == english
    ]
    return sum(values) / len(values) if values else None


def score_rows(run: RunRecord) -> list[Result]:
    """Bits per byte of the latest trained model, for a run that was not compared with a base."""
    trained = [model for model in run.models if model.role == "trained"]
    if not trained:
        return []
    rows = [r for r in run.results if r.model == trained[-1].name and r.metric == "bits_per_byte"]
    return sorted(rows, key=lambda row: (row.benchmark, row.value))
