"""The published scores, on the page and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emma.tools.evaluation.averages import ALL, ENGLISH_GROUP, OTHERS
from emma.tools.evaluation.measures import Metric, benchmark, metric
from emma.tools.evaluation.reference import (
    ReferenceAverage,
    bases,
    notes,
    read_reference,
    shipped_models,
    source,
)
from emma.tools.evaluation.tables import text_table
from emma.tools.languages.codes import CATEGORIES

__all__ = ["ReferenceView", "gains_text", "reference_text", "reference_view"]

_NOT_COMPARED = ("aya", "polywrite")
"""Published only for the first generation and under a different protocol; in the table, not on the page."""


@dataclass(frozen=True)
class _Row:
    title: str
    metric: Metric
    languages: int
    values: list[float | None]
    best: int | None
    mark: str


@dataclass(frozen=True)
class _Gain:
    before: str
    after: str
    change: str
    better: bool


@dataclass(frozen=True)
class ReferenceView:
    """The table of published averages (one row per benchmark and metric, one column per model), and gains by
    category."""

    source: str
    models: list[str]
    rows: list[_Row]
    notes: list[tuple[str, str]]
    pairs: list[tuple[str, str]]
    gains: list[tuple[str, list[tuple[str, int, list[_Gain | None]]]]]


def reference_view() -> ReferenceView:
    """The shipped table, as shown on the page.

    Raises:
        UserError: the table is damaged.
    """
    table = [row for row in read_reference() if row.benchmark not in _NOT_COMPARED]
    models = shipped_models()
    keys = list(dict.fromkeys((row.benchmark, row.metric) for row in table))
    found = {(row.benchmark, row.metric, row.group, row.model): row for row in table}
    rows: list[_Row] = []
    remarks: list[tuple[str, str]] = []
    marks: dict[str, str] = {}
    for name, key in keys:
        cells = [found.get((name, key, ALL, model)) for model in models]
        values = [cell.value if cell else None for cell in cells]
        own = notes(name) + [f"{model}: {note}" for model in models for note in notes(name, model)]
        if own and name not in marks:
            marks[name] = str(len(marks) + 1)
            remarks.append((marks[name], "; ".join(own)))
        sign = metric(key).sign
        known = [value * sign for value in values if value is not None]
        rows.append(
            _Row(
                benchmark(name).name,
                metric(key),
                next(cell.languages for cell in cells if cell),
                values,
                next((n for n, v in enumerate(values) if v is not None and v * sign == max(known)), None),
                marks.get(name, ""),
            )
        )
    pairs = [(base, model) for model, base in bases().items()]
    gains = []
    for name, key in keys:
        if key == benchmark(name).metric or key in ("rougeL_ws", "nll"):
            gains.append((f"{benchmark(name).name}, {metric(key).name}", _gains(found, name, key, pairs)))
    return ReferenceView(source(), models, rows, remarks, pairs, gains)


def _gains(
    found: dict[tuple[str, str, str, str], ReferenceAverage],
    name: str,
    key: str,
    pairs: Sequence[tuple[str, str]],
) -> list[tuple[str, int, list[_Gain | None]]]:
    of = metric(key)
    rows = []
    for group in (OTHERS, *CATEGORIES, ENGLISH_GROUP):
        cells: list[_Gain | None] = []
        languages = 0
        for base, model in pairs:
            before, after = found.get((name, key, group, base)), found.get((name, key, group, model))
            if before is None or after is None:
                cells.append(None)
                continue
            change = after.value - before.value
            languages = after.languages
            cells.append(
                _Gain(
                    of.show(before.value), of.show(after.value), of.show(change, True), change * of.sign > 0
                )
            )
        if any(cells):
            rows.append((group, languages, cells))
    return rows


def reference_text(rows: Sequence[ReferenceAverage], models: Sequence[str]) -> str:
    """Averages over all languages as a text table, one row per benchmark and metric."""
    found = {(row.benchmark, row.metric, row.model): row for row in rows if row.group == ALL}
    keys = list(dict.fromkeys((row.benchmark, row.metric) for row in rows))
    body = []
    for name, key in keys:
        cells = [found.get((name, key, model)) for model in models]
        best = max(
            (r for k, r in found.items() if k[:2] == (name, key)), key=lambda r: metric(key).sign * r.value
        )
        shown = [metric(key).show(cell.value) if cell else "" for cell in cells]
        body.append([f"{name} {key}", *shown, f"{best.model} {metric(key).show(best.value)}"])
    short = [model.replace("EMMA-500 ", "E-").replace("Llama ", "L") for model in models]
    return text_table(["mean over languages", *short, "best of its table"], body)


def gains_text(rows: Sequence[ReferenceAverage], name: str, key: str) -> str:
    """Every EMMA-500 model against its base on one benchmark, by group, as a text table."""
    found = {(row.group, row.model): row for row in rows if (row.benchmark, row.metric) == (name, key)}
    of = metric(key)
    groups = [group for group in (OTHERS, *CATEGORIES, ENGLISH_GROUP) if any(g == group for g, _ in found)]
    body = []
    for group in groups:
        cells = []
        for model, base in bases().items():
            before, after = found.get((group, base)), found.get((group, model))
            cells.append(f"{of.show(before.value)} → {of.show(after.value)}" if before and after else "")
        count = max(row.languages for (g, _), row in found.items() if g == group)
        body.append([group, str(count), *cells])
    heading = [f"{benchmark(name).name}, {of.name}", "languages", *bases()]
    return text_table([head.replace("EMMA-500 ", "E-") for head in heading], body)
