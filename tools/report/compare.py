"""The page that compares runs: what each gained over its base, and over each other, at which budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from emma.base.errors import UserError
from emma.tools.charts.figures import Curves, Figure
from emma.tools.charts.inline import Point, scatter
from emma.tools.charts.scales import duration, number
from emma.tools.evaluation.gains import Gains, compare
from emma.tools.evaluation.groups import ENGLISH, order_categories
from emma.tools.evaluation.pooling import PooledGroup
from emma.tools.evaluation.stored import stored_scores
from emma.tools.report.benchmarks import (
    BenchmarkView,
    benchmark_views,
    checkpoint_figures,
    field_views,
)
from emma.tools.report.checkpoints import facts_of
from emma.tools.report.forgetting import ForgettingRow, forgetting_rows
from emma.tools.report.gains import KindGains, gain_sections, heldout_figures
from emma.tools.report.mix import MixView, mix_view
from emma.tools.report.page import render
from emma.tools.report.provenance import device_hours, flat
from emma.tools.report.records import RunRecord
from emma.tools.report.reference import ReferenceView, reference_view
from emma.tools.report.training import category_colors, one_tokenizer, overlaid_charts
from emma.tools.report.verdicts import Judged, judge_page, latest

__all__ = ["Comparison", "compare_page", "comparison", "paired_gains"]

# Keys that name a run or its location, not what it does.
_NOT_A_DIFFERENCE = ("name", "description", "paths.", "data.name")


@dataclass(frozen=True)
class GroupRow:
    """A group of languages: bits per byte of the base, and each run's change; `best` is the index of the
    largest gain."""

    kind: str
    group: str
    languages: int
    base: float | None
    changes: list[float | None]
    errors: list[float | None]
    best: int | None


@dataclass(frozen=True)
class Comparison:
    """The page's content on benchmarks: the runs and all verdicts on them, one view per benchmark, the forgetting panel,
    the curves."""

    runs: Sequence[RunRecord]
    judged: Judged
    views: list[BenchmarkView]
    forgetting: list[ForgettingRow]
    checkpoints: list[Curves]
    reference: ReferenceView

    @property
    def figures(self) -> list[Figure]:
        """All figures that can be exported to files."""
        return [*(figure for view in self.views for figure in view.figures), *self.checkpoints]


def comparison(runs: Sequence[RunRecord]) -> Comparison:
    """Compares runs.

    Args:
        runs: two or more; the others are compared with the first.

    Raises:
        UserError: fewer than two runs, or two with the same name.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise UserError("give two or more runs to compare")
    if len(set(names)) < len(names):
        raise UserError(f"two of the runs have the same name ({', '.join(names)}); name each run once")
    against = {run.name: gains for run in runs[1:] if (gains := paired_gains(runs[0], run)) is not None}
    judged = judge_page(runs, against)
    runs = judged.runs
    views = benchmark_views(judged)
    return Comparison(
        runs,
        judged,
        views,
        forgetting_rows(runs, views),
        [*heldout_figures(runs), *checkpoint_figures(runs, views)],
        reference_view(),
    )


def compare_page(
    runs: Sequence[RunRecord], compared: Comparison | None = None, atlas: str | None = None
) -> str:
    """HTML of the comparison.

    Args:
        runs: two or more; the others are compared with the first.
        compared: the result of `comparison` for them, if already computed.
        atlas: relative address of the atlas, if there is one.

    Raises:
        UserError: fewer than two runs, or two with the same name.
    """
    compared = compared or comparison(runs)
    runs = compared.runs
    return render(
        "compare.html.j2",
        atlas=atlas,
        runs=runs,
        views=compared.views,
        field=field_views(compared.views),
        forgetting=compared.forgetting,
        checkpoints=compared.checkpoints,
        reference=compared.reference,
        verdicts=compared.judged.tally,
        summary=_summary(runs),
        budget=_budget(runs),
        rows=_group_rows(runs),
        against=_against_first(runs, compared.judged.against),
        curves=_curves(runs),
        charts=overlaid_charts(runs),
        one_tokenizer=one_tokenizer(runs),
        mixes=[(run.name, mix_view(run)) for run in runs],
        mix_rows=_mix_rows([mix_view(run) for run in runs]),
        differences=_differences(runs),
    )


def _budget(runs: Sequence[RunRecord]) -> dict[str, Any]:
    tokens = [run.steps[-1]["consumed_tokens"] if run.steps else None for run in runs]
    known = [count for count in tokens if count is not None]
    return {
        "tokens": tokens,
        "equal": len(known) == len(runs) and len(set(known)) == 1,
        "known": len(known) == len(runs),
    }


def _summary(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Rows of the runs table: a label and one cell per run."""

    def last(run: RunRecord, key: str) -> Any:
        return run.steps[-1].get(key) if run.steps else None

    hours = [device_hours(run) for run in runs]
    # A loss per token is a number of its own for each tokenizer.
    losses = [last(run, "loss") if one_tokenizer(runs) else None for run in runs]
    return [
        ("data", [run.recipe.data.name for run in runs]),
        ("steps", [number(last(run, "step")) for run in runs]),
        ("tokens trained on", [number(last(run, "consumed_tokens")) for run in runs]),
        ("training loss, last step", ["–" if loss is None else f"{loss:.3f}" for loss in losses]),
        ("device time", [duration(h * 3600) if h else "–" for h in hours]),
        ("parity of the export", [_parity(run) for run in runs]),
    ]


def _parity(run: RunRecord) -> str:
    if run.parity is None:
        return "–"
    return "passed" if run.parity["passed"] else "failed"


def _group_rows(runs: Sequence[RunRecord]) -> list[GroupRow]:
    """Groups of languages on which at least one run was evaluated."""
    tables: list[Mapping[tuple[str, str], Mapping[str, Any]]] = [
        {(row["kind"], row["group"]): row for row in run.gains["groups"]} if run.gains else {} for run in runs
    ]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = []
    for kind, group in keys:
        found = [table.get((kind, group)) for table in tables]
        changes = [row["difference"] if row else None for row in found]
        first = next(row for row in found if row)
        same_base = len({round(row["base"], 9) for row in found if row}) == 1
        known = [change for change in changes if change is not None]
        rows.append(
            GroupRow(
                kind,
                group,
                max(row["languages"] for row in found if row),
                first["base"] if same_base else None,
                changes,
                [row["error"] if row else None for row in found],
                changes.index(min(known)) if len(known) > 1 else None,
            )
        )
    return rows


def paired_gains(first: RunRecord, other: RunRecord) -> Gains | None:
    """The latest evaluated models of two runs against each other on the same documents; None if either has no
    scores."""
    models = [latest(run) for run in (first, other)]
    if models[0] is None or models[1] is None:
        return None
    scores = [
        stored_scores(run.folder / "evaluation", model, run.results)
        for run, model in zip((first, other), models, strict=True)
        if model
    ]
    if not set(scores[0]) & set(scores[1]):
        return None
    return compare(models[0].name, models[1].name, scores[0], scores[1], facts_of([first, other]))


def _against_first(
    runs: Sequence[RunRecord], against: Mapping[str, Gains]
) -> list[tuple[RunRecord, list[KindGains], tuple[PooledGroup, ...]]]:
    """The sections of every other run against the first, and its pooled groups."""
    return [
        (run, gain_sections(against[run.name].to_dict(), runs[0]), against[run.name].pooled)
        for run in runs
        if run.name in against
    ]


def _curves(runs: Sequence[RunRecord]) -> list[Markup]:
    """Each language's gain under the first run against its gain under each other run."""
    charts = []
    first = runs[0]
    for run in runs[1:]:
        if not (first.gains and run.gains):
            continue
        mine = {(r["kind"], r["language"]): r for r in first.gains["languages"]}
        pairs = [
            (mine[row["kind"], row["language"]], row)
            for row in run.gains["languages"]
            if row["kind"] == "monolingual" and (row["kind"], row["language"]) in mine
        ]
        if len(pairs) < 3:
            continue
        categories = order_categories(
            (row["category"] for _, row in pairs if row["category"]), first.recipe.data.mix
        )
        colors = category_colors(categories)
        points = [
            Point(
                f"{row['language']}: {a['difference']:+.3f} and {row['difference']:+.3f}",
                a["difference"],
                row["difference"],
                "s5" if row["language"] == ENGLISH else colors.get(row["category"] or "", "o7"),
            )
            for a, row in pairs
        ]
        charts.append(
            scatter(
                f"{first.name} and {run.name}, per language",
                points,
                unit=f"change under {run.name}; below the line it gained more",
                x_label=f"change in bits per byte under {first.name}",
                legend=[(color, name, "") for name, color in colors.items()],
            )
        )
    return charts


def _mix_rows(mixes: Sequence[MixView | None]) -> list[tuple[str, list[tuple[float, float] | None]]]:
    """Each run's share and epochs, by component."""
    names = list(dict.fromkeys(row.name for mix in mixes if mix for row in mix.rows if not row.part_of))
    table = []
    for name in names:
        cells: list[tuple[float, float] | None] = []
        for mix in mixes:
            row = next((r for r in mix.rows if r.name == name and not r.part_of), None) if mix else None
            cells.append((row.share, row.epochs) if row else None)
        table.append((name, cells))
    return table


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Recipe keys that differ, with each run's value."""
    values = [flat(run.recipe.to_dict()) for run in runs]
    keys = list(dict.fromkeys(key for value in values for key in value))
    rows = []
    for key in keys:
        if key in _NOT_A_DIFFERENCE or key.startswith(tuple(k for k in _NOT_A_DIFFERENCE if k.endswith("."))):
            continue
        cells = [value.get(key, "–") for value in values]
        if any(cell != cells[0] for cell in cells[1:]):
            rows.append((key, [str(cell) for cell in cells]))
    return rows
