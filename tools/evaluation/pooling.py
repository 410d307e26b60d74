"""Partial pooling: what groups of languages gained, and what single languages gained in the light of their group.

Each language's difference has an error of its own, and languages of a group truly differ too. The normal-normal model
says both: difference ~ N(true, error²), true ~ N(mean of the group, spread²).

- Errors from few documents are themselves noisy, and weights made of them would be. They are moderated first: each
  language's variance is drawn towards what is usual among the languages (Smyth 2004, SAGMB 3(1)).
- A group's mean has Hartung and Knapp's interval (2001, Statistics in Medicine 20) with the spread of Paule and Mandel,
  which keeps its coverage with few languages.
- A language's pooled difference is the mean of its posterior, whose interval is integrated over what is not known of the
  spread, with the uniform shrinkage prior (DuMouchel 1994; Daniels 1999, Canadian Journal of Statistics 27).

The model takes languages as independent given their group. So it is right for text of their own, and not for items that
all languages share (`item_response` is for these). `tests/tools/evaluation/test_pooling.py` simulates the coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_LANGUAGES", "Pooled", "PooledGroup", "moderated", "pool", "pool_groups"]

LEAST_LANGUAGES = 3
"""Fewest languages of a group whose mean has an interval."""

_COVERAGE = 0.95
_SPREADS = 40
"""Points of the spread over which the posterior is integrated."""


_LEAST_CATEGORY = 10
"""Fewest languages of a resource category with which its languages are pooled."""


class Measured(Protocol):
    """A difference in one language: its standard error (None for one unit) and the number of units."""

    @property
    def language(self) -> str: ...
    @property
    def difference(self) -> float: ...
    @property
    def error(self) -> float | None: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Pooled:
    """A group of languages, in the unit of the differences.

    Attributes:
        mean: mean of the true differences of languages like these.
        low, high: its 95 % interval.
        spread: standard deviation of the true differences.
        values, lows, highs: every language's pooled difference and its 95 % interval, in the order given.
    """

    mean: float
    low: float
    high: float
    spread: float
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def pool(
    differences: Sequence[float], errors: Sequence[float | None], counts: Sequence[int]
) -> Pooled | None:
    """Pools the differences of one group.

    Args:
        differences: by language.
        errors: their standard errors; None where one unit was measured.
        counts: units (documents) of each.

    Returns:
        None for fewer than `LEAST_LANGUAGES` languages, or if no language has an error.
    """
    from scipy.stats import t

    size = len(differences)
    found = moderated(errors, counts)
    if size < LEAST_LANGUAGES or found is None:
        return None
    seen, (error, freedom) = np.asarray(differences, np.float64), found
    # Equal models have neither differences nor errors; weights must stay finite.
    error = np.maximum(error, 1e-12 * max(1.0, float(np.abs(seen).max())))
    variance = error**2
    spread2 = _spread2(seen, variance)
    weights = 1 / (variance + spread2)
    mean = float(np.average(seen, weights=weights))
    scale = float(np.sum(weights * (seen - mean) ** 2)) / (size - 1)
    reach = float(t.ppf((1 + _COVERAGE) / 2, size - 1)) * (scale / float(weights.sum())) ** 0.5
    values, lows, highs = _languages(seen, error, freedom)
    return Pooled(
        mean,
        mean - reach,
        mean + reach,
        float(spread2**0.5),
        tuple(values.tolist()),
        tuple(lows.tolist()),
        tuple(highs.tolist()),
    )


@dataclass(frozen=True)
class PooledGroup:
    """The pooled mean of a group with its 95 % interval; `dimension` is `all`, `category`, `script` or `family`, `spread`
    the standard deviation of its languages' true differences."""

    kind: str
    dimension: str
    group: str
    languages: int
    mean: float
    low: float
    high: float
    spread: float


def pool_groups(
    kind: str, rows: Sequence[Measured], groups: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[PooledGroup], dict[str, tuple[float, float, float]]]:
    """Pools every group, and every language with others of its kind.

    Args:
        kind: kind of text.
        rows: what was measured in each language.
        groups: languages by (dimension, group); a language counts in several. `("all", …)` comes first.

    Returns:
        The groups that have enough languages; and by language the pooled difference and its interval. A language is
        pooled with its resource category if that has `_LEAST_CATEGORY` languages, else with all.
    """
    by_name = {row.language: row for row in rows}
    found: list[PooledGroup] = []
    languages: dict[str, tuple[float, float, float]] = {}
    for (dimension, group), members in groups.items():
        chosen = [by_name[name] for name in members]
        pooled = pool(
            [row.difference for row in chosen], [row.error for row in chosen], [row.n for row in chosen]
        )
        if pooled is None:
            continue
        found.append(
            PooledGroup(
                *(kind, dimension, group, len(chosen)), pooled.mean, pooled.low, pooled.high, pooled.spread
            )
        )
        if dimension == "all" or (dimension == "category" and len(chosen) >= _LEAST_CATEGORY):
            languages |= dict(
                zip(members, zip(pooled.values, pooled.lows, pooled.highs, strict=True), strict=True)
            )
    return found, languages


def moderated(
    errors: Sequence[float | None], counts: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Standard errors that borrow strength from each other, and their degrees of freedom (Smyth 2004, section 6.2).

    The variance of a unit is taken to be alike in all languages, up to a variation that is estimated. A language with one
    unit has the usual variance.

    Args:
        errors: standard errors of means over units, None for one unit.
        counts: units.

    Returns:
        Errors and degrees of freedom [languages]; None if there is no error at all.
    """
    from scipy.special import digamma, polygamma

    units = np.asarray(counts, np.float64)
    known = np.array([error is not None and count > 1 for error, count in zip(errors, counts, strict=True)])
    if not known.any():
        return None
    own = np.where(known, units - 1, 0.0)
    variance = np.array([error or 0.0 for error in errors], np.float64) ** 2 * units
    if not variance.any():
        return np.zeros(len(units)), np.maximum(own, 1.0)
    # A variance of zero, of documents that differ alike, is a sign of few of them.
    least = 1e-4 * float(np.median(variance[known & (variance > 0)]))
    half = own[known] / 2
    logs = np.log(np.maximum(variance[known], least)) - digamma(half) + np.log(half)
    centre = float(logs.mean())
    beyond = (
        float(np.mean((logs - centre) ** 2 * len(logs) / (len(logs) - 1) - polygamma(1, half)))
        if len(logs) > 1
        else 0.0
    )
    if beyond <= 0:
        usual, prior = float(np.average(variance[known], weights=own[known])), 1e6
    else:
        prior = 2 * _inverse_trigamma(beyond)
        usual = float(np.exp(centre + digamma(prior / 2) - np.log(prior / 2)))
    error = np.sqrt((prior * usual + own * variance) / (prior + own) / units)
    # No error is known better than all of them together tell.
    return error, np.minimum(prior + own, own.sum())


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, a decreasing function."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    # trigamma(x) lies between 1/x + 1/(2x²) and 1/x + 1/x².
    low, high = 0.5 / (1 + value), 1 / value + 1
    return float(brentq(lambda x: float(polygamma(1, x)) - value, low, high))


def _spread2(seen: NDArray[np.float64], variance: NDArray[np.float64]) -> float:
    """The spread², at which the weighted sum of squares is as expected (Paule and Mandel 1982)."""
    from scipy.optimize import brentq

    def beyond(spread2: float) -> float:
        weights = 1 / (variance + spread2)
        return float(np.sum(weights * (seen - np.average(seen, weights=weights)) ** 2)) - (len(seen) - 1)

    # At the sum of squares itself, even without errors, less is left than expected.
    most = float(np.sum((seen - seen.mean()) ** 2))
    if most == 0 or beyond(0.0) <= 0:
        return 0.0
    return float(brentq(beyond, 0.0, most, xtol=1e-12 * most))


def _languages(
    seen: NDArray[np.float64], error: NDArray[np.float64], freedom: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Posterior means and 95 % intervals of the true differences."""
    from scipy.special import stdtr

    # The prior is uniform in spread / (spread + typical error).
    share = (np.arange(_SPREADS) + 0.5) / _SPREADS
    spread2 = (float(np.median(error)) * share / (1 - share)) ** 2
    total = error[:, None] ** 2 + spread2
    weights = 1 / total
    sums = weights.sum(axis=0)
    means = (weights * seen[:, None]).sum(axis=0) / sums
    away = seen[:, None] - means
    logs = -0.5 * (np.log(total).sum(axis=0) + np.log(sums) + (weights * away**2).sum(axis=0))
    chance = np.exp(logs - logs.max())
    chance /= chance.sum()
    drawn = error[:, None] ** 2 / total
    centre = seen[:, None] - drawn * away
    width = np.sqrt((1 - drawn) * error[:, None] ** 2 + drawn**2 / sums)

    def quantile(level: float) -> NDArray[np.float64]:
        low, high = (centre - 60 * width).min(axis=1), (centre + 60 * width).max(axis=1)
        for _ in range(24):
            middle = (low + high) / 2
            below = (stdtr(freedom[:, None], (middle[:, None] - centre) / width) @ chance) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2)

    return centre @ chance, quantile((1 - _COVERAGE) / 2), quantile((1 + _COVERAGE) / 2)
