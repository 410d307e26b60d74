"""Comparing models on the benchmarks they share: averages with intervals, wins and losses, groups, health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.tools.evaluation.averages import ENGLISH_GROUP, OTHERS, Average, averages, groups_of
from emma.tools.evaluation.bootstrap import Estimate, average, average_of_items
from emma.tools.evaluation.measures import Benchmark, Metric, benchmark, metric
from emma.tools.evaluation.results import Result
from emma.tools.evaluation.significance import Score, Verdict, compare_languages
from emma.tools.languages.codes import language

__all__ = [
    "CLUSTER",
    "BenchmarkScores",
    "Change",
    "Items",
    "baseline",
    "benchmark_scores",
    "benchmarks_of",
    "change",
    "compare_scores",
    "estimate",
    "health",
    "main_metric",
    "value_of",
    "verdict_counts",
]

Items = Callable[[str, str, str], Mapping[str, Any] | None]
"""(benchmark, language, metric) → scores of single items by id, or their statistics if the metric is a function of the
sum of these; None if they were not kept."""

CLUSTER = "cluster"
"""The metric under which items name what they belong to: items of one cluster count as one unit in tests."""

_PREFERRED = ("acc", "exact_match", "chrf++", "spbleu", "rougeL_uni", "bits_per_byte", "nll")


@dataclass(frozen=True)
class BenchmarkScores:
    """One model on one benchmark: `scores` by language, in the unit of the results; `health` rates by metric and
    language."""

    benchmark: Benchmark
    metric: Metric
    scores: dict[str, Score]
    health: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """Value by language."""
        return {name: score.value for name, score in self.scores.items()}


@dataclass(frozen=True)
class Change:
    """A trained model and its base on one benchmark.

    Attributes:
        languages: tests for every language, including English.
        average: mean difference over all languages but English, None if there is only English.
        groups: mean differences by dimension and group.
        members: languages of every (dimension, group).
        group_counts: wins, ties and losses by (dimension, group).
        counts: wins, ties and losses over all languages but English.
        english: the test for English, None if it was not evaluated.
    """

    languages: list[Verdict]
    average: Estimate | None
    groups: list[Average]
    members: dict[tuple[str, str], list[str]]
    group_counts: dict[tuple[str, str], dict[str, int]]
    counts: dict[str, int]
    english: Verdict | None


def benchmarks_of(rows: Iterable[Result], prefix: str = "heldout") -> list[str]:
    """Benchmarks in the results, in order of appearance, without those on held-out text (named `prefix/...`)."""
    return list(dict.fromkeys(row.benchmark for row in rows if row.benchmark.split("/")[0] != prefix))


def main_metric(name: str, metrics: Iterable[str]) -> str | None:
    """The main metric of a benchmark among those in its results; None if none of them is a score."""
    found = [key for key in dict.fromkeys(metrics) if metric(key).is_score]
    wanted = (benchmark(name).metric, *_PREFERRED, *sorted(found))
    return next((key for key in wanted if key in found), None)


def benchmark_scores(
    rows: Sequence[Result], model: str, name: str, *, key: str | None = None, items: Items | None = None
) -> BenchmarkScores | None:
    """Scores of a model on a benchmark; None if it has none.

    Args:
        rows: results, of any models and benchmarks.
        model: name of the model.
        name: name of the benchmark.
        key: metric; default: the benchmark's main one.
        items: where to find scores of single items.
    """
    mine = [row for row in rows if row.model == model and row.benchmark == name]
    key = key or main_metric(name, (row.metric for row in mine))
    chosen = [row for row in mine if row.metric == key]
    if key is None or not chosen:
        return None
    rates: dict[str, dict[str, float]] = {}
    for row in mine:
        if metric(row.metric).kind == "health":
            rates.setdefault(row.metric, {})[row.language] = row.value
    scores = {row.language: _score(row, name, key, items) for row in chosen}
    return BenchmarkScores(benchmark(name), metric(key), scores, rates)


def _score(row: Result, name: str, key: str, items: Items | None) -> Score:
    found = items(name, row.language, key) if items else None
    clusters = items(name, row.language, CLUSTER) if items and found else None
    if found and all(isinstance(value, list) for value in found.values()):
        return Score(row.value, row.error, statistics=found, clusters=clusters, n=row.n)
    return Score(row.value, row.error, found, clusters=clusters, n=row.n)


def value_of(key: str) -> Callable[[NDArray[np.float64]], float] | None:
    """The score of a sum of items' statistics: a ratio of two, or sacreBLEU's; None for other metrics, and if sacreBLEU
    is not installed."""
    if key in ("bits_per_byte", "nll_per_token"):
        return lambda row: float(row[0] / row[1])
    if key not in ("chrf++", "spbleu", "bleu"):
        return None
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        return None
    # The statistics are counts already, so the tokenizer no longer matters.
    scorer: Any = CHRF(word_order=2) if key == "chrf++" else BLEU(tokenize="none", force=True)
    return lambda row: float(scorer._compute_score_from_stats([round(n) for n in row]).score)


def estimate(scores: BenchmarkScores) -> Estimate | None:
    """Average over all languages but English, with its 95 % interval; None if there is only English."""
    others = {name: score for name, score in scores.scores.items() if not language(name).is_english}
    return (
        _estimate(others, scores.benchmark, f"{scores.benchmark.key}/{scores.metric.key}") if others else None
    )


def _estimate(scores: Mapping[str, Score], of: Benchmark, name: str) -> Estimate:
    items = {key: score.items for key, score in scores.items() if score.items}
    # A corpus-level metric (BLEU, chrF++) is not the mean of its items; then the languages' scores are averaged.
    faithful = len(items) == len(scores) and all(
        abs(sum(row.values()) / len(row) - scores[key].value) < 1e-6 for key, row in items.items()
    )
    if of.parallel and faithful:
        return average_of_items(items, name)
    return average(
        [score.value for score in scores.values()], name, errors=[score.error for score in scores.values()]
    )


def compare_scores(base: BenchmarkScores, trained: BenchmarkScores) -> list[Verdict]:
    """The tests of two models in every language that both were scored on by the same metric, to be judged together with
    all others of a page (`significance.judge`).

    Raises:
        UserError: the two models were scored on different items of a language.
    """
    of = trained.metric
    return compare_languages(base.scores, trained.scores, better=of.better, value_of=value_of(of.key))


def change(
    base: BenchmarkScores,
    trained: BenchmarkScores,
    rows: Sequence[Verdict],
    *,
    trained_on: frozenset[str] | None = None,
    seen: frozenset[str] | None = None,
) -> Change | None:
    """What training changed on a benchmark; None if the two models have no language in common.

    Args:
        base: scores of the base.
        trained: scores of the trained model, by the same metric.
        rows: their judged tests.
        trained_on: languages of the run's mix.
        seen: languages that the base was pre-trained on.
    """
    if not rows:
        return None
    by_language = {row.language: row for row in rows}
    differences = {row.language: row.difference for row in rows}
    groups = groups_of(differences, trained=trained_on, seen=seen)
    others = groups.get(("overall", OTHERS), [])
    english = groups.get(("overall", ENGLISH_GROUP), [])
    paired = {
        name: _difference(base.scores[name], trained.scores[name], by_language[name]) for name in others
    }
    return Change(
        list(rows),
        _estimate(paired, trained.benchmark, f"{trained.benchmark.key}/{trained.metric.key}/change")
        if paired
        else None,
        averages(differences, trained=trained_on, seen=seen),
        groups,
        {key: verdict_counts([by_language[name] for name in members]) for key, members in groups.items()},
        verdict_counts([by_language[name] for name in others]),
        by_language[english[0]] if english else None,
    )


def _difference(base: Score, trained: Score, row: Verdict) -> Score:
    items = None
    if base.items and trained.items:
        items = {item: trained.items[item] - base.items[item] for item in base.items}
    return Score(row.difference, row.error, items)


def baseline(rows: Sequence[Result], name: str, kind: str) -> float | None:
    """Accuracy of guessing (`chance`) or of the most frequent answer (`majority`): the results' mean over all languages
    but English or, failing that, the benchmark's known value; None if there is neither."""
    values = {
        row.language: row.value
        for row in rows
        if row.benchmark == name and row.metric == kind and not language(row.language).is_english
    }
    if values:
        return sum(values.values()) / len(values)
    known = benchmark(name)
    return known.chance if kind == "chance" else known.majority


def health(scores: BenchmarkScores) -> list[tuple[Metric, float, str]]:
    """Signs of broken outputs: the metric, its mean over languages, and the worst language."""
    rows = []
    for key, rates in scores.health.items():
        worst = max(rates, key=lambda name: rates[name])
        rows.append((metric(key), sum(rates.values()) / len(rates), worst))
    return rows


def verdict_counts(rows: Sequence[Verdict]) -> dict[str, int]:
    """Number of languages won, tied and lost."""
    found = Counter(row.verdict for row in rows)
    return {verdict: found[verdict] for verdict in ("win", "tie", "loss")}
