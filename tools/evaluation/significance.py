"""Paired tests of two models, per language, corrected for the number of languages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emma.base.errors import UserError

__all__ = [
    "ALPHA",
    "Correction",
    "Score",
    "Verdicts",
    "adjust",
    "compare_languages",
    "mcnemar",
    "paired_statistics",
    "paired_t",
    "two_errors",
    "verdict_counts",
]

Correction = Literal["bh", "holm", "none"]

ALPHA = 0.05
"""Significance level of the tests."""


@dataclass(frozen=True)
class Score:
    """One model on one language.

    Attributes:
        value: the score.
        error: its standard error, if known.
        items: scores of single items by id, if they were kept.
        statistics: statistics of single items by id, for a metric that is a function of their sum (BLEU, chrF++)."""

    value: float
    error: float | None = None
    items: Mapping[str, float] | None = None
    statistics: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Verdicts:
    """Two models on one language.

    Attributes:
        language: language or translation direction.
        base: score of the first model.
        trained: score of the second.
        difference: `trained − base`, in the unit of the results.
        error: standard error of the difference, None if unknown.
        p: two-sided p-value; 1 if there is no test.
        adjusted: p-value corrected for the number of languages compared.
        test: `McNemar`, `paired t`, `paired bootstrap`, `two errors`, or empty if there is none.
        verdict: `win`, `loss` or `tie`.
    """

    language: str
    base: float
    trained: float
    difference: float
    error: float | None
    p: float
    adjusted: float
    test: str
    verdict: str


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test.

    Args:
        gained: items that only the second model gets right.
        lost: items that only the first model gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_t(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, float | None]:
    """Two-sided p of the paired t-test and the standard error of the mean; `(1, None)` for fewer than two items."""
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    count = len(values)
    if count < 2:
        return 1.0, None
    error = float(np.std(values, ddof=1)) / count**0.5
    mean = float(values.mean())
    if error == 0:
        return (1.0 if mean == 0 else 0.0), 0.0
    return float(2 * t.sf(abs(mean) / error, count - 1)), error


def two_errors(base: Score, trained: Score) -> tuple[float, float | None]:
    """Two-sided p of the difference between two scores with errors, taken as independent, and its standard error.

    If both models saw the same items the true error is smaller, so this misses some differences.
    """
    if base.error is None or trained.error is None:
        return 1.0, None
    error = math.hypot(base.error, trained.error)
    if error == 0:
        return (1.0 if base.value == trained.value else 0.0), 0.0
    return math.erfc(abs(trained.value - base.value) / error / math.sqrt(2)), error


def paired_statistics(
    base: Mapping[str, Sequence[float]],
    trained: Mapping[str, Sequence[float]],
    value_of: Callable[[NDArray[np.float64]], float],
    draws: int = 1000,
) -> tuple[float, float | None]:
    """Two-sided p and standard error of the difference between two scores that are functions of summed statistics.

    Both models are resampled over the same items. The error is the standard deviation of the differences, and p that of
    a normal deviate, so that the number of draws does not bound it.

    Args:
        base: item → statistics.
        trained: item → statistics, for the same items.
        value_of: score of a sum of statistics.
        draws: number of resamples.
    """
    tables = [np.array([found[item] for item in base], np.float64) for found in (base, trained)]
    count = len(tables[0])
    if count < 2:
        return 1.0, None
    weights = np.random.default_rng(count).multinomial(count, np.full(count, 1 / count), size=draws)
    drawn = [np.array([value_of(row) for row in weights @ table]) for table in tables]
    error = float(np.std(drawn[1] - drawn[0], ddof=1))
    change = value_of(tables[1].sum(axis=0)) - value_of(tables[0].sum(axis=0))
    if error == 0:
        return (1.0 if change == 0 else 0.0), 0.0
    return math.erfc(abs(change) / error / math.sqrt(2)), error


def adjust(p: Sequence[float], correction: Correction = "bh") -> list[float]:
    """p-values corrected for multiple testing, in the order given.

    Args:
        p: p-values.
        correction: `bh` (Benjamini and Hochberg) bounds the expected share of false findings, `holm` the chance of
            any false finding; `none` corrects nothing.
    """
    if correction == "none" or not p:
        return list(p)
    values = np.asarray(p, np.float64)
    if correction == "bh":
        from scipy.stats import false_discovery_control

        return [float(value) for value in false_discovery_control(values, method="bh")]
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return [float(value) for value in np.minimum(adjusted, 1)]


def compare_languages(
    base: Mapping[str, Score],
    trained: Mapping[str, Score],
    *,
    better: str,
    correction: Correction = "bh",
    alpha: float = ALPHA,
    value_of: Callable[[NDArray[np.float64]], float] | None = None,
) -> list[Verdicts]:
    """Tests for every language that both models were scored on.

    Scores of single items are paired: McNemar's exact test if all are 0 or 1, else the paired t-test. Statistics of
    single items are resampled. With neither, the two scores' own errors are used.

    Args:
        base: scores by language.
        trained: scores by language.
        better: `higher` or `lower`.
        correction: see `adjust`.
        alpha: a corrected p below this makes a win or a loss.
        value_of: score of a sum of statistics, for scores that have them.

    Raises:
        UserError: the two models were scored on different items of a language.
    """
    rows = [
        _test(language, base[language], trained[language], value_of)
        for language in base
        if language in trained
    ]
    corrected = adjust([row.p for row in rows], correction)
    sign = 1 if better == "higher" else -1
    done = []
    for row, p in zip(rows, corrected, strict=True):
        clear = p < alpha and row.difference != 0
        verdict = "tie" if not clear else "win" if sign * row.difference > 0 else "loss"
        done.append(replace(row, adjusted=p, verdict=verdict))
    return done


def _test(
    language: str, base: Score, trained: Score, value_of: Callable[[NDArray[np.float64]], float] | None
) -> Verdicts:
    difference = trained.value - base.value
    for before, after in ((base.items, trained.items), (base.statistics, trained.statistics)):
        if before and after and before.keys() != after.keys():
            raise UserError(
                f"{language}: the two models were scored on different items; evaluate both with the same --limit"
            )
    if base.items and trained.items:
        pairs = np.array([(base.items[item], trained.items[item]) for item in base.items], np.float64)
        changes = pairs[:, 1] - pairs[:, 0]
        p, error = paired_t(changes)
        name = "paired t"
        if np.isin(pairs, (0.0, 1.0)).all():
            p, name = mcnemar(int((changes > 0).sum()), int((changes < 0).sum())), "McNemar"
    elif base.statistics and trained.statistics and value_of is not None:
        p, error = paired_statistics(base.statistics, trained.statistics, value_of)
        name = "paired bootstrap"
    else:
        p, error = two_errors(base, trained)
        name = "two errors" if error is not None else ""
    return Verdicts(language, base.value, trained.value, difference, error, p, p, name, "tie")


def verdict_counts(rows: Sequence[Verdicts]) -> dict[str, int]:
    """Number of languages won, tied and lost."""
    found = Counter(row.verdict for row in rows)
    return {verdict: found[verdict] for verdict in ("win", "tie", "loss")}
