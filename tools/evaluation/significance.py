"""The one routine behind every verdict on two models: the test, the least that it needs, and its control over a page.

Each comparison is reduced to one number for each unit, the difference between the two models there. A unit is what was
drawn independently: a document, an item, or all items of one passage. The hypothesis is that the models are
exchangeable, so that each unit's difference is as likely with the other sign. Then:

- if all differences that are not zero have the same size (right and wrong answers), their signs are coin tosses:
  McNemar's exact test;
- with few differences, all their signs are enumerated: Fisher's randomization test, exact at any n and for any tails;
- with many, Student's t.

Differences may be skewed although their mean is zero, which the last two take for an effect more often than they should:
of few values, those that are rare and far away are missing. A verdict therefore also has to pass Hall's
skewness-corrected t (Hall 1992, JRSS B 54), with more skewness than the sample shows, and a p that grows as values get
fewer. Units without a difference hide skewness and tell no direction: all tests are on the others.

With fewer than `LEAST` units nothing is said. A page's verdicts are controlled together, over languages, benchmarks and
runs: `judge` bounds the share of them that is expected to be wrong. `LEVEL` is below the customary 5 %, so that what is
approximate in the tests stays below it; docs/verdicts.md has the measured rates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emma.base.errors import UserError

__all__ = [
    "LEAST",
    "LEVEL",
    "Method",
    "Score",
    "Tally",
    "Verdict",
    "compare_languages",
    "influences",
    "judge",
    "paired_error",
    "paired_test",
    "tally",
    "units_p",
    "two_errors",
]

Method = Literal["bh", "by"]

LEVEL = 0.04
"""Expected share of wrong verdicts among a page's clear ones; of a single comparison, the chance of a wrong one."""

LEAST = 10
"""Fewest units from which anything is concluded."""

_ENUMERATED = 14
"""Differences whose signs are enumerated: 2¹³ patterns, the other half being their mirror images."""

_HIDDEN = 10
"""What few values hide: a sample's skewness and p are raised by this number over the values. Chosen with `_BENT` by
simulation: the least loss of power at which lopsided differences stay below 6 % (docs/verdicts.md)."""

_BENT = 0.75
"""Most that Hall's transformation bends a t, where 1 would flatten it: no effect would be large enough."""

_LEAST_INDIRECT = 30
"""Fewest units where differences are not seen but estimated: scores of a whole corpus, and scores known only with their
errors. These tests are right for many items only."""


@dataclass(frozen=True)
class Score:
    """One model on one language.

    Attributes:
        value: the score.
        error: its standard error, if known.
        items: scores of single items by id, if they were kept.
        statistics: statistics of single items by id, for a metric that is a function of their sum (BLEU, chrF++).
        clusters: what each item belongs to (a passage with several questions); None: each item stands by itself.
        n: number of items behind the value."""

    value: float
    error: float | None = None
    items: Mapping[str, float] | None = None
    statistics: Mapping[str, Sequence[float]] | None = None
    clusters: Mapping[str, str] | None = None
    n: int = 0


@dataclass(frozen=True)
class Verdict:
    """Two models on one language.

    Attributes:
        language: language or translation direction.
        base: score of the first model.
        trained: score of the second.
        difference: `trained − base`, in the unit of the results.
        error: standard error of the difference, None if unknown.
        p: two-sided p-value of the comparison by itself; None if there is no test, or too few units for one.
        test: `McNemar`, `sign flips`, `t`, `two errors`, or why there is none (`too few`, `no errors`).
        units: number of independent units behind the test.
        better: `higher` or `lower`.
        adjusted: p-value corrected for all comparisons judged together; None without a test.
        verdict: `win`, `loss` or `tie`.
    """

    language: str
    base: float
    trained: float
    difference: float
    error: float | None
    p: float | None
    test: str
    units: int
    better: str
    adjusted: float | None = None
    verdict: str = "tie"


def paired_test(differences: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Two-sided p-values and names of the tests of several comparisons at once.

    Args:
        differences: [comparisons, units], the two models' difference on each independent unit.

    Returns:
        p [comparisons], NaN where there are too few units, and the test's name [comparisons].
    """
    from scipy.stats import binom

    table = np.asarray(differences, np.float64)
    rows, count = table.shape
    if count < LEAST:
        return np.full(rows, np.nan), np.full(rows, "too few")
    largest = np.abs(table).max(axis=1, keepdims=True)
    table = table / np.where(largest > 0, largest, 1.0)
    size = np.abs(table)
    there = size > 1e-12
    alike = (~there | (size >= 1 - 1e-9)).all(axis=1)
    moved = there.sum(axis=1)
    p, names = np.ones(rows), np.full(rows, "McNemar", dtype="<U10")
    up = (there & (table > 0)).sum(axis=1)
    rarer = np.minimum(up, moved - up)
    if alike.any():
        p[alike] = np.minimum(1.0, 2 * binom.cdf(rarer[alike], moved[alike], 0.5))
    graded, few = ~alike, ~alike & (moved <= _ENUMERATED)
    if graded.any():
        names[graded], names[few] = "t", "sign flips"
        p[graded], bar = _student(table[graded], there[graded])
        p[few] = _sign_flips(table[few])
        p[graded] = np.minimum(1.0, np.maximum(p[graded], bar) * (1 + _HIDDEN / moved[graded]))
    return p, names


def _sign_flips(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of all sign patterns whose sum is at least as far from zero as the one that was seen."""
    size = np.sort(np.abs(table), axis=1)[:, ::-1][:, :_ENUMERATED]
    seen = np.abs(table.sum(axis=1))
    # Sums that are equal in exact arithmetic must count as equal.
    bound = seen - 1e-9 * size.sum(axis=1)
    signs = _signs(size.shape[1])
    p = np.empty(len(table))
    for begin in range(0, len(table), 256):
        sums = np.abs(size[begin : begin + 256] @ signs)
        p[begin : begin + 256] = (sums >= bound[begin : begin + 256, None]).mean(axis=1)
    return p


@functools.cache
def _signs(count: int) -> NDArray[np.float64]:
    """All sign patterns [count, 2^(count-1)] whose first sign is positive; the others give the same sums, mirrored."""
    bits = (np.arange(1 << (count - 1))[None, :] >> np.arange(count)[:, None]) & 1
    return np.asarray(1.0 - 2.0 * bits[::-1], np.float64)


def _student(
    table: NDArray[np.float64], there: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two-sided p of the mean of what is `there` in each row: Student's t, and Hall's transformation of it."""
    from scipy.stats import t

    count = there.sum(axis=1)
    mean = table.sum(axis=1) / count
    rest = np.where(there, table - mean[:, None], 0.0)
    variance = np.sum(rest**2, axis=1) / count
    lean = np.sum(rest**3, axis=1) / count / variance**1.5 * (1 + _HIDDEN / count)
    ratio = mean / np.sqrt(variance * count / (count - 1))
    bend = np.maximum(lean * ratio / 3, -_BENT)
    hall = ratio * (1 + bend + bend**2 / 3) + lean / (6 * count)
    student, corrected = (2 * t.sf(np.abs(value) * np.sqrt(count), count - 1) for value in (ratio, hall))
    return student, corrected


def units_p(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float | None, str]:
    """Two-sided p of one comparison from its units' differences, and the test's name; None if there are too few."""
    p, names = paired_test(np.asarray(differences, np.float64)[None, :])
    return None if math.isnan(p[0]) else float(p[0]), str(names[0])


def paired_error(differences: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Standard error of the mean of units' differences; None for fewer than two."""
    values = np.asarray(differences, np.float64)
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def influences(
    base: NDArray[np.float64], trained: NDArray[np.float64], value_of: Callable[[NDArray[np.float64]], float]
) -> NDArray[np.float64]:
    """Each unit's part in the difference between two scores that are functions of summed statistics.

    These are the jackknife's pseudo-values (Tukey 1958), whose mean is the difference without its bias of order 1/n, and
    which are the units' differences themselves if the score is their mean.

    Args:
        base: statistics of the first model [units, statistics].
        trained: those of the second, for the same units.
        value_of: score of a sum of statistics.

    Returns:
        One value per unit; empty for a single unit.
    """
    count = len(base)
    if count < 2:
        return np.zeros(0)
    totals = base.sum(axis=0), trained.sum(axis=0)
    whole = value_of(totals[1]) - value_of(totals[0])
    without = np.array(
        [value_of(totals[1] - b) - value_of(totals[0] - a) for a, b in zip(base, trained, strict=True)]
    )
    return count * whole - (count - 1) * without


def two_errors(base: Score, trained: Score) -> tuple[float | None, float | None, str]:
    """p of the difference between two scores of which only errors are known, its standard error, and the test's name.

    Welch's t with the degrees of freedom of the smaller sample. Taking the scores as independent misses some differences
    if both models saw the same items. There is no test without errors, or where one is zero (all answers alike), which
    is a sign of few items and not of certainty.
    """
    from scipy.stats import t

    if not base.error or not trained.error:
        return None, None, "no errors"
    error = math.hypot(base.error, trained.error)
    least = min(base.n, trained.n)
    if least < _LEAST_INDIRECT:
        return None, error, "too few"
    return float(2 * t.sf(abs(trained.value - base.value) / error, least - 1)), error, "two errors"


def compare_languages(
    base: Mapping[str, Score],
    trained: Mapping[str, Score],
    *,
    better: str,
    value_of: Callable[[NDArray[np.float64]], float] | None = None,
) -> list[Verdict]:
    """The tests of every language that both models were scored on, not judged yet (see `judge`).

    Args:
        base: scores by language.
        trained: scores by language.
        better: `higher` or `lower`.
        value_of: score of a sum of statistics, for scores that have them.

    Raises:
        UserError: the two models were scored on different items of a language.
    """
    return [
        _test(language, base[language], trained[language], better, value_of)
        for language in base
        if language in trained
    ]


def _test(
    language: str,
    base: Score,
    trained: Score,
    better: str,
    value_of: Callable[[NDArray[np.float64]], float] | None,
) -> Verdict:
    difference = trained.value - base.value
    for before, after in ((base.items, trained.items), (base.statistics, trained.statistics)):
        if before and after and before.keys() != after.keys():
            raise UserError(
                f"{language}: the two models were scored on different items; evaluate both with the same --limit"
            )
    if base.items and trained.items:
        rows = list(base.items)
        changes = np.array([trained.items[item] - base.items[item] for item in base.items], np.float64)
        groups = _groups(rows, base.clusters)
        sums = _summed(language, rows, changes[:, None], groups)[:, 0]
        p, name = units_p(sums)
        # The value is a mean over items, however many of them each cluster has.
        centred = np.bincount(groups, weights=changes - changes.mean())
        units = len(sums)
        spread = np.sqrt(units / max(1, units - 1) * np.sum(centred**2))
        error = float(spread) / len(changes) if units > 1 else None
    elif base.statistics and trained.statistics and value_of is not None:
        rows = list(base.statistics)
        groups = _groups(rows, base.clusters)
        tables = [
            _summed(language, rows, np.array([score[item] for item in rows], np.float64), groups)
            for score in (base.statistics, trained.statistics)
        ]
        parts = influences(tables[0], tables[1], value_of)
        units = len(tables[0])
        p, name = units_p(parts) if units >= _LEAST_INDIRECT else (None, "too few")
        error = paired_error(parts)
    else:
        units = min(base.n, trained.n)
        p, error, name = two_errors(base, trained)
    return Verdict(language, base.value, trained.value, difference, error, p, name, units, better)


def _groups(items: Sequence[str], clusters: Mapping[str, str] | None) -> NDArray[np.int64]:
    """Number of each item's cluster; an item without one is its own."""
    numbers: dict[tuple[str, str], int] = {}
    found = []
    for item in items:
        name = clusters.get(item) if clusters else None
        found.append(numbers.setdefault(("item", item) if not name else ("cluster", name), len(numbers)))
    return np.array(found, np.int64)


def _summed(
    language: str, items: Sequence[str], table: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums of the rows of each group. A score that is no number must not pass for one without a difference."""
    if not (fine := np.isfinite(table).all(axis=1)).all():
        broken = f"{language}: the score of item {items[int(fine.argmin())]}"
        raise UserError(f"{broken} is not a finite number; evaluate this language again")
    sums = np.zeros((int(groups.max()) + 1, table.shape[1]))
    np.add.at(sums, groups, table)
    return sums


def judge[R: Any](rows: Sequence[R], *, method: Method = "bh", level: float = LEVEL) -> list[R]:
    """The same comparisons with `adjusted` and `verdict`, controlled together.

    Comparisons without a test are left out of the control: what leaves them out is the number of units, never the data.

    Args:
        rows: everything that a page compares (`Verdict`, or any dataclass with `p`, `difference`, `better`).
        method: `bh` (Benjamini and Hochberg 1995), which bounds the expected share of wrong verdicts if the tests are
            independent or positively dependent, as languages on the same items are; `by` (Benjamini and Yekutieli
            2001) whatever their dependence, with less power.
        level: the bound.
    """
    from scipy.stats import false_discovery_control

    tested = [row for row in rows if row.p is not None]
    found = iter(false_discovery_control([row.p for row in tested], method=method) if tested else ())
    judged = []
    for row in rows:
        adjusted = float(next(found)) if row.p is not None else None
        verdict = "tie"
        if adjusted is not None and adjusted <= level and row.difference != 0:
            verdict = "win" if (row.difference > 0) == (row.better == "higher") else "loss"
        judged.append(replace(row, adjusted=adjusted, verdict=verdict))
    return judged


@dataclass(frozen=True)
class Tally:
    """What a page's verdicts amount to: comparisons, those with a test, clear ones, and the level of the control."""

    comparisons: int
    tested: int
    clear: int
    level: float = LEVEL

    @property
    def wrong(self) -> float:
        """Upper bound of the expected number of wrong ones among the clear."""
        return self.level * self.clear

    @property
    def sentence(self) -> str:
        """All of it in words."""
        text = f"{self.comparisons:,} comparisons, {self.tested:,} with enough documents or items to test"
        if not self.tested:
            return text + "; nothing is concluded."
        return (
            f"{text}; {self.clear:,} are clear, of which at most {100 * self.level:g} % "
            f"({self.wrong:.1f}) are expected to be wrong."
        )


def tally(rows: Sequence[Any], level: float = LEVEL) -> Tally:
    """Counts of judged comparisons."""
    return Tally(
        len(rows), sum(row.p is not None for row in rows), sum(row.verdict != "tie" for row in rows), level
    )
