"""Abilities on a benchmark's stored items, for every language of a run and its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.tools.evaluation import measures
from emma.tools.evaluation.comparison import baseline, main_metric, value_of
from emma.tools.evaluation.item_response import (
    Ability,
    SubsetCheck,
    abilities,
    check_subset,
    choose,
    fit,
)
from emma.tools.evaluation.measures import benchmark
from emma.tools.evaluation.results import read_results
from emma.tools.evaluation.stored import evaluated_models, evaluation_folder, item_scores
from emma.tools.evaluation.tables import text_table
from emma.tools.languages.labels import language_name

__all__ = ["ItemReport", "item_report", "items_table"]


@dataclass(frozen=True)
class ItemReport:
    """Abilities by model and language on one scale; the subset's item ids, and how it does against the full run."""

    benchmark: str
    metric: str
    guessing: float
    items: int
    abilities: dict[str, dict[str, Ability]]
    subset: list[str]
    check: SubsetCheck

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def item_report(
    run: str | Path,
    name: str,
    *,
    metric: str | None = None,
    threshold: float | None = None,
    share: float = 0.1,
) -> ItemReport:
    """Fits the items of a benchmark that the latest trained model and its base were asked.

    Args:
        run: run or evaluation folder.
        name: benchmark whose items are the same in all languages.
        metric: of the items; None: the benchmark's main one.
        threshold: at or above it an item counts as right; None: items are right or wrong already.
        share: of the items in the subset.

    Raises:
        UserError: the benchmark has no parallel items or none were kept, languages were asked different items, or they
            are too few.
    """
    folder = evaluation_folder(str(run))
    if not benchmark(name).parallel:
        raise UserError(f"{name}: its items differ between languages, so they are on no common scale")
    rows = [row for row in read_results(folder) if row.benchmark == name]
    key = metric or main_metric(name, (row.metric for row in rows))
    if key is not None and measures.metric(key).better != "higher":
        raise UserError(
            f"{name}: lower {key} is better, so it is no share of right answers; choose another --metric"
        )
    models = evaluated_models(folder)
    chosen = [[model for model in models if model.role == role][-1:] for role in ("base", "trained")]
    answers: list[tuple[str, str, dict[str, float]]] = []
    for model in (model for found in chosen for model in found):
        stored = item_scores(folder, model.name)
        for language in dict.fromkeys(row.language for row in rows if row.model == model.name):
            kept = stored(name, language, key) if key else None
            if kept:
                answers.append(
                    (model.name, language, _right(kept, f"{name}/{language}", key or "", threshold))
                )
    if not answers:
        raise UserError(f"{folder}: no items of {name} are kept; run `emma evaluate run --benchmarks {name}`")
    names = list(answers[0][2])
    for _, language, found in answers:
        if found.keys() != answers[0][2].keys():
            raise UserError(
                f"{name}: {language} and {answers[0][1]} were asked different items; evaluate all with one --limit"
            )
    table = np.array([[found[item] for item in names] for _, _, found in answers], np.float64)
    guessing = (baseline(rows, name, "chance") or 0.0) if threshold is None else 0.0
    check = check_subset(table, [language for _, language, _ in answers], share, guessing)
    model_of_items = fit(table, guessing)
    by_model: dict[str, dict[str, Ability]] = {}
    for (model_name, language, _), ability in zip(answers, abilities(model_of_items, table), strict=True):
        by_model.setdefault(model_name, {})[language] = ability
    subset = [names[item] for item in choose(model_of_items, check.items)]
    return ItemReport(name, key or "", guessing, len(names), by_model, subset, check)


def _right(kept: Mapping[str, Any], where: str, metric: str, threshold: float | None) -> dict[str, float]:
    """Each item's answer as right (1) or wrong (0)."""
    score = value_of(metric)
    values: dict[str, float] = {}
    for item, value in kept.items():
        if isinstance(value, Sequence):
            if score is None:
                raise UserError(f"{where}: {metric} has no value for single items; choose another --metric")
            value = score(np.asarray(value, np.float64))
        values[item] = float(value)
    if threshold is not None:
        return {item: float(value >= threshold) for item, value in values.items()}
    if any(value not in (0.0, 1.0) for value in values.values()):
        raise UserError(
            f"{where}: {metric} is not right or wrong; say with --threshold from where on it is right"
        )
    return values


def items_table(report: ItemReport) -> str:
    """The report for a terminal."""
    languages = dict.fromkeys(language for found in report.abilities.values() for language in found)
    last = list(report.abilities.values())[-1]
    rows = []
    for language in sorted(languages, key=lambda name: -last[name].value if name in last else 9.0):
        cells = [language, language_name(language)]
        for found in report.abilities.values():
            ability = found.get(language)
            cells += (
                [
                    f"{ability.value:+.2f}",
                    f"{ability.low:+.2f} … {ability.high:+.2f}",
                    f"{100 * ability.expected:.1f}",
                ]
                if ability
                else ["–", "–", "–"]
            )
        rows.append(cells)
    header = ["language", "name"]
    for model in report.abilities:
        header += [model, "95 % interval", "expected %"]
    check = report.check
    return (
        f"{report.benchmark}, {report.metric}: abilities on {report.items:,} items "
        f"(chance of guessing {report.guessing:.2f})\n\n{text_table(header, rows)}\n\n"
        f"{check.items:,} of {check.of:,} items, chosen by information, predict the full score of languages left out of the "
        f"fit within {100 * check.half_width:.1f} points (95 %); root mean square error {100 * check.error:.1f} points, "
        f"{100 * check.random_error:.1f} for the plain score of as many random items. The model's own intervals hold it in "
        f"{100 * check.coverage:.0f} % of {check.languages:,} cases, and are widened by {check.widen:.2f}."
    )
