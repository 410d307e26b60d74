"""Benchmarks on the page: one view per benchmark, with every run beside its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from emma.tools.charts.figures import Bar, Curves, Differences, Dots, Figure
from emma.tools.charts.inline import Point, Segment, Series, share_bar
from emma.tools.evaluation import measures
from emma.tools.evaluation.averages import ENGLISH_GROUP, OTHERS
from emma.tools.evaluation.bootstrap import Estimate
from emma.tools.evaluation.comparison import (
    BenchmarkScores,
    Change,
    baseline,
    benchmark_scores,
    change,
    estimate,
    health,
)
from emma.tools.evaluation.measures import Metric, benchmark, metric
from emma.tools.evaluation.significance import Verdict
from emma.tools.evaluation.wins import field_wins
from emma.tools.languages.codes import CATEGORIES, language
from emma.tools.report.outputs import LEARNED, Outputs, outputs_of
from emma.tools.report.records import RunRecord
from emma.tools.report.tokens import cost_of, tokenizer_costs
from emma.tools.report.training import category_colors
from emma.tools.report.verdicts import Judged, latest

__all__ = [
    "BenchmarkView",
    "GroupCells",
    "RunCell",
    "benchmark_views",
    "checkpoint_figures",
    "field_views",
]

_COLORS = category_colors(CATEGORIES)
_ENGLISH_COLOR = "s5"
_FEW = 3


@dataclass(frozen=True)
class RunCell:
    """A run's result on a benchmark; `change` is against its own base, None if the base was not evaluated."""

    run: str
    base: str | None
    scores: BenchmarkScores
    average: Estimate | None
    base_scores: BenchmarkScores | None
    base_average: Estimate | None
    change: Change | None
    english: float | None
    health: list[tuple[Metric, float, str]]
    figures: list[Figure]


@dataclass(frozen=True)
class GroupCells:
    """A group of languages: the base's mean, and per run its mean, its change, and its (wins, ties,
    losses)."""

    dimension: str
    group: str
    languages: int
    base: float | None
    cells: list[tuple[float, float | None, dict[str, int]] | None]
    color: str | None


@dataclass(frozen=True)
class BenchmarkView:
    """A benchmark: `cells` has one entry per run; `others` holds the means of its other metrics, `costs` what the first
    run's tokenizer costs each language."""

    key: str
    title: str
    metric: Metric
    languages: int
    chance: float | None
    majority: float | None
    cells: list[RunCell | None]
    groups: list[GroupCells]
    rows: list[tuple[str, str, float | None, list[Verdict | None], list[float | None]]]
    others: list[tuple[Metric, float | None, list[float | None]]]
    outputs: Outputs
    costs: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def base(self) -> RunCell | None:
        """The cell of the first run that has a base."""
        return next((cell for cell in self.cells if cell and cell.base_scores), None)

    @property
    def figures(self) -> list[Figure]:
        """Charts of all runs."""
        return [figure for cell in self.cells if cell for figure in cell.figures]


def benchmark_views(judged: Judged) -> list[BenchmarkView]:
    """Views of every benchmark on which any of the page's runs was evaluated."""
    names = sorted({name for _, name in judged.benchmarks}, key=measures.place)
    return [_view(name, judged.runs, [_cell(run, name, judged) for run in judged.runs]) for name in names]


def _cell(run: RunRecord, name: str, judged: Judged) -> RunCell | None:
    found = judged.benchmarks.get((run.name, name))
    if found is None:
        return None
    scores, of_base = found.scores, found.base_scores
    changed = None
    if of_base is not None:
        changed = change(of_base, scores, found.rows, trained_on=_trained_on(run), seen=_seen(run))
    english = [value for code, value in scores.values.items() if language(code).is_english]
    return RunCell(
        run.name,
        found.base,
        scores,
        estimate(scores),
        of_base,
        estimate(of_base) if of_base else None,
        changed,
        english[0] if english else None,
        health(scores),
        _figures(run.name, name, scores, changed) if changed else [],
    )


def _trained_on(run: RunRecord) -> frozenset[str] | None:
    """Languages in the run's mix, including both sides of pairs; None if its plan is missing."""
    if not run.mix:
        return None
    found = set()
    for part in run.mix:
        if part.tokens and part.component in ("monolingual", "bilingual", "parallel"):
            found |= set(part.language.split("-"))
    return frozenset(found)


def _seen(run: RunRecord) -> frozenset[str] | None:
    """Languages that the base was pre-trained on, as recorded by the evaluation on held-out text."""
    rows = run.gains["languages"] if run.gains else []
    if all(row["seen_by_base"] is None for row in rows):
        return None
    return frozenset(code for row in rows if row["seen_by_base"] for code in row["language"].split("-"))


def _color(code: str) -> str:
    found = language(code)
    return _ENGLISH_COLOR if found.is_english else _COLORS[found.category]


def _legend(codes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    present = {language(code).category for code in codes if not language(code).is_english}
    rows = [(_COLORS[name], name) for name in CATEGORIES if name in present]
    if any(language(code).is_english for code in codes):
        rows.append((_ENGLISH_COLOR, ENGLISH_GROUP))
    return tuple(rows)


def _figures(run: str, name: str, scores: BenchmarkScores, changed: Change) -> list[Figure]:
    """Sorted differences, and base against trained, in the displayed unit; none for so few languages that a
    table is clearer."""
    rows = sorted(changed.languages, key=lambda row: row.difference, reverse=scores.metric.better == "higher")
    if len(rows) < _FEW:
        return []
    of, factor = scores.metric, scores.metric.factor
    legend = _legend([row.language for row in rows])
    bars = tuple(
        Bar(
            row.language,
            row.difference * factor,
            row.error * factor if row.error is not None else None,
            _color(row.language),
            f"{row.language}: {of.show(row.base)} → {of.show(row.trained)} ({of.show(row.difference, True)}, {row.verdict})",
        )
        for row in rows
    )
    points = tuple(
        Point(
            f"{row.language}: {of.show(row.base)} → {of.show(row.trained)}",
            row.base * factor,
            row.trained * factor,
            _color(row.language),
        )
        for row in rows
    )
    side = "above" if of.better == "higher" else "below"
    title = f"{run}: change per language"
    return [
        Differences(f"{name}-{run}-differences", title, f"{of.name}, {side} zero is better", bars, legend),
        Dots(
            f"{name}-{run}-scatter",
            f"{run}: every language before and after",
            f"{of.name} after; {side} the line is better",
            f"{of.name} of the base",
            points,
            legend,
        ),
    ]


def _view(name: str, runs: Sequence[RunRecord], cells: list[RunCell | None]) -> BenchmarkView:
    first = next(cell for cell in cells if cell)
    results = [row for run in runs for row in run.results]
    return BenchmarkView(
        name,
        benchmark(name).name,
        first.scores.metric,
        max(len(cell.scores.scores) for cell in cells if cell),
        baseline(results, name, "chance"),
        baseline(results, name, "majority"),
        cells,
        _groups(cells),
        _rows(cells),
        _others(name, runs, first.scores.metric),
        outputs_of(name, runs),
        _costs(runs, cells),
        _notes(cells),
    )


def _costs(runs: Sequence[RunRecord], cells: Sequence[RunCell | None]) -> dict[str, dict[str, Any]]:
    known = tokenizer_costs(runs[0])
    codes = {code for cell in cells if cell for code in cell.scores.scores}
    return {code: cost for code in codes if (cost := cost_of(known, code))}


def _notes(cells: Sequence[RunCell | None]) -> list[str]:
    """Warnings about a score: labels that collapsed, empty outputs, output in other languages."""
    return [
        f"{cell.run}: {rate.name} {rate.show(value)} %, most in {worst}"
        for cell in cells
        if cell
        for rate, value, worst in cell.health
    ]


def _groups(cells: Sequence[RunCell | None]) -> list[GroupCells]:
    keys: dict[tuple[str, str], int] = {}
    for cell in cells:
        for row in cell.change.groups if cell and cell.change else ():
            keys[row.dimension, row.group] = max(row.languages, keys.get((row.dimension, row.group), 0))
    rows = []
    for (dimension, group), count in keys.items():
        if (dimension, group) == ("overall", "all"):
            continue
        found: list[tuple[float, float | None, dict[str, int]] | None] = []
        base: float | None = None
        for cell in cells:
            if cell is None or cell.change is None:
                found.append(None)
                continue
            difference = next(
                (r.value for r in cell.change.groups if (r.dimension, r.group) == (dimension, group)), None
            )
            members = cell.change.members.get((dimension, group), [])
            if difference is None or not members or cell.base_scores is None:
                found.append(None)
                continue
            values = cell.scores.values
            before = cell.base_scores.values
            base = sum(before[name] for name in members) / len(members) if base is None else base
            mean = sum(values[name] for name in members) / len(members)
            found.append((mean, difference, cell.change.group_counts[dimension, group]))
        color = _COLORS.get(group) if dimension == "category" else None
        rows.append(GroupCells(dimension, group, count, base, found, color))
    return rows


def _rows(
    cells: Sequence[RunCell | None],
) -> list[tuple[str, str, float | None, list[Verdict | None], list[float | None]]]:
    """Languages: code, colour, the base's value, and each run's test and value."""
    codes = dict.fromkeys(code for cell in cells if cell for code in cell.scores.scores)
    tests = [
        {row.language: row for row in cell.change.languages} if cell and cell.change else {} for cell in cells
    ]
    rows = []
    for code in codes:
        base = next((found[code].base for found in tests if code in found), None)
        values = [cell.scores.values.get(code) if cell else None for cell in cells]
        rows.append((code, _color(code), base, [found.get(code) for found in tests], values))
    first = next((found for found in tests if found), {})
    sign = next(cell.scores.metric.sign for cell in cells if cell)
    return sorted(rows, key=lambda row: -sign * first[row[0]].difference if row[0] in first else 0.0)


def _others(
    name: str, runs: Sequence[RunRecord], main: Metric
) -> list[tuple[Metric, float | None, list[float | None]]]:
    keys = dict.fromkeys(
        row.metric for run in runs for row in run.results if row.benchmark == name and row.metric != main.key
    )

    def mean(run: RunRecord, key: str, role: str) -> float | None:
        model = latest(run, role)
        values = [
            row.value
            for row in run.results
            if model
            and (row.model, row.benchmark, row.metric) == (model.name, name, key)
            and not language(row.language).is_english
        ]
        return sum(values) / len(values) if values else None

    rows = []
    for key in keys:
        if metric(key).kind in ("score", "health") and key not in LEARNED:
            base = next((value for run in runs if (value := mean(run, key, "base")) is not None), None)
            rows.append((metric(key), base, [mean(run, key, "trained") for run in runs]))
    return rows


def field_views(views: Sequence[BenchmarkView]) -> list[tuple[str, list[Markup]]]:
    """Wins among the base and all runs, by benchmark: one bar over all languages and one per category."""
    found = []
    for view in views:
        field: dict[str, dict[str, float]] = {}
        if view.base and view.base.base_scores:
            field["base"] = view.base.base_scores.values
        field |= {cell.run: cell.scores.values for cell in view.cells if cell}
        won = field_wins(field, better=view.metric.better)
        if len(field) < 2 or not any(won.values()):
            continue
        bars = []
        for group in (OTHERS, *CATEGORIES, ENGLISH_GROUP):
            counts = {model: wins.get(group, 0) for model, wins in won.items()}
            if sum(counts.values()) and not (group == ENGLISH_GROUP and len(counts) < 2):
                places = {
                    model: "s5" if model == "base" else f"s{n}"
                    for n, model in enumerate(counts, -1 if "base" in field else 0)
                }
                segments = [Segment(model, count, places[model]) for model, count in counts.items() if count]
                bars.append(
                    Markup('<div class="won"><span>{}</span>{}</div>').format(
                        group, share_bar(segments, f"{view.title}, {group}: wins", counts=True)
                    )
                )
        found.append((view.title, bars))
    return found


def checkpoint_figures(runs: Sequence[RunRecord], views: Sequence[BenchmarkView]) -> list[Curves]:
    """Averages of every benchmark over the evaluated checkpoints, English separate; none for fewer than
    two."""
    figures = []
    for view in views:
        series: list[Series] = []
        for place, run in enumerate(runs):
            for english in (False, True):
                points = _curve(run, view, english)
                if len(points) > 1:
                    name = f"{run.name}, {ENGLISH_GROUP}" if english else run.name
                    color = f"s{(place + (4 if english else 0)) % 8}"
                    series.append(Series(name, [x for x, _ in points], [y for _, y in points], color))
        if series:
            figures.append(
                Curves(
                    f"{view.key}-checkpoints",
                    f"{view.title} over checkpoints",
                    view.metric.name,
                    tuple(series),
                )
            )
    return figures


def _curve(run: RunRecord, view: BenchmarkView, english: bool) -> list[tuple[float, float]]:
    """Steps and means in the displayed unit; the base is step 0 of a run that started from its weights."""
    points = []
    for model in run.models:
        step = model.step
        if model.role == "base":
            step = 0 if run.recipe.start.mode == "weights" else None
        scores = benchmark_scores(run.results, model.name, view.key, key=view.metric.key)
        if step is None or scores is None:
            continue
        values = [v for code, v in scores.values.items() if language(code).is_english == english]
        if values:
            points.append((float(step), sum(values) / len(values) * view.metric.factor))
    trained = sum(1 for model in run.models if model.role == "trained" and model.step is not None)
    return sorted(points) if trained > 1 else []
