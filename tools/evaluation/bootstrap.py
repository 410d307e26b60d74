"""Bootstrap errors of ratios over documents, and errors and intervals of averages over languages.

The languages are a sample of those that a model may meet, and the items of a parallel benchmark are one sample that all
languages share: a lucky choice of items lifts every language at once. An average therefore has three sources of chance,
as in a crossed random-effects model: languages, items, and the residual of each cell. Resampling rows and columns of the
table counts the residual three times (Owen 2007, The pigeonhole bootstrap). Here the effects are scaled to their
estimated variances before resampling (Carpenter, Goldstein and Rasbash 2003, Applied Statistics 52), which is unbiased,
and the draws are widened to Student's t with Satterthwaite's degrees of freedom, for averages of few languages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWS", "Estimate", "average", "average_of_items", "error_of", "ratio_draws"]

DRAWS = 1000
"""Number of bootstrap resamples, which makes the error known to about 2 %."""

# Documents resampled at once, in draws × documents.
_CELLS_AT_ONCE = 4 << 20


def _generator(name: str) -> np.random.Generator:
    """A generator that depends only on `name`, so that draws for two models over the same documents are paired."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def ratio_draws(
    numerator: Sequence[float], denominator: Sequence[float], name: str, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Bootstrap draws of `sum(numerator) / sum(denominator)` over documents.

    Args:
        numerator: one value per document, e.g. bits.
        denominator: one positive value per document, e.g. bytes.
        name: seeds the draws; equal names resample the same documents.
        draws: number of resamples.

    Returns:
        float64 array [draws].
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    generator, count = _generator(name), len(top)
    step = max(1, _CELLS_AT_ONCE // count)
    parts = []
    for begin in range(0, draws, step):
        counts = generator.multinomial(count, np.full(count, 1 / count), size=min(step, draws - begin))
        parts.append((counts @ top) / (counts @ bottom))
    return np.concatenate(parts)


def error_of(draws: NDArray[np.float64], count: int) -> float | None:
    """Standard error, which is the draws' standard deviation; None for fewer than two documents."""
    return float(np.std(draws, ddof=1)) if count > 1 else None


@dataclass(frozen=True)
class Estimate:
    """An average over languages.

    Attributes:
        value: the mean, each language counted once.
        error: its standard error, None if there is too little to estimate it from.
        low: lower end of the interval, None without an error.
        high: upper end.
        languages: number of languages.
        items: number of items that all languages share, None if they share none.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    languages: int
    items: int | None = None


def average(
    values: Sequence[float], name: str, *, level: float = 0.95, errors: Sequence[float | None] = ()
) -> Estimate:
    """Average of one value per language, with an interval from resampling the languages.

    Values vary both between languages and with the items that each language was measured on, so the error covers both.
    It does not account for items that languages share.

    Args:
        values: one per language.
        name: seeds the draws.
        level: coverage of the interval.
        errors: standard errors of the values, used only for a single language, where there is no spread.
    """
    rows = np.asarray(values, np.float64)
    count, mean = len(rows), float(np.mean(values))
    if count == 1:
        error = errors[0] if errors else None
        if error is None:
            return Estimate(mean, None, None, None, 1)
        draws = mean + error * _generator(name).standard_normal(_INTERVAL_DRAWS)
        return _estimate(mean, error, draws, level, 1, None)
    error = float(np.std(rows, ddof=1)) / count**0.5
    generator = _generator(name)
    deviations = _resampled(rows - mean, np.var(rows, ddof=1), generator)
    return _estimate(mean, error, mean + deviations * _t_spread(generator, count - 1), level, count, None)


def average_of_items(items: Mapping[str, Mapping[str, float]], name: str, *, level: float = 0.95) -> Estimate:
    """Average over languages of the mean over each language's items.

    If all languages were measured on the same items, languages and items are resampled together, else as in `average`.

    Args:
        items: language → item → score (or difference between two models' scores).
        name: seeds the draws.
        level: coverage of the interval.
    """
    languages = list(items)
    first = list(items[languages[0]])
    if all(items[language].keys() == items[languages[0]].keys() for language in languages[1:]):
        table = np.array([[items[language][item] for item in first] for language in languages], np.float64)
        return _crossed(table, name, level)
    means = [float(np.mean(list(items[language].values()))) for language in languages]
    return average(means, name, level=level)


_INTERVAL_DRAWS = 2000
"""Resamples per interval, which makes its ends known to about 3 % of its width."""


def _crossed(table: NDArray[np.float64], name: str, level: float) -> Estimate:
    """Average of a table [languages, items] of which both rows and columns are samples."""
    rows, columns = table.shape
    cells = rows * columns
    mean = float(table.mean())
    by_row, by_column = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - by_row[:, None] - by_column[None, :]
    freedom = (rows - 1, columns - 1, (rows - 1) * (columns - 1))
    squares = (columns * np.sum(by_row**2), rows * np.sum(by_column**2), np.sum(rest**2))
    row_square, column_square, rest_square = (
        float(square) / df if df else 0.0 for square, df in zip(squares, freedom, strict=True)
    )
    if not any(freedom):
        return Estimate(mean, None, None, None, rows, columns)
    of_rows = max(0.0, (row_square - rest_square) / columns)
    of_columns = max(0.0, (column_square - rest_square) / rows)
    variance = of_rows / rows + of_columns / columns + rest_square / cells
    parts = (row_square / cells, column_square / cells, rest_square / cells)
    spread = sum(part**2 / df for part, df in zip(parts, freedom, strict=True) if df)
    generator = _generator(name)
    draws = (
        _resampled(by_row, of_rows, generator)
        + _resampled(by_column, of_columns, generator)
        + generator.normal(0.0, (rest_square / cells) ** 0.5, _INTERVAL_DRAWS)
    )
    if spread:
        draws *= _t_spread(generator, max(1.0, variance**2 / spread))
    return _estimate(mean, variance**0.5, mean + draws, level, rows, columns)


def _resampled(
    effects: NDArray[np.float64], variance: float | np.floating[Any], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of resamples of `effects`, after scaling them to `variance`."""
    own = float(np.mean(effects**2))
    if own == 0 or variance == 0:
        return np.zeros(_INTERVAL_DRAWS)
    scaled = effects * (float(variance) / own) ** 0.5
    step = max(1, _CELLS_AT_ONCE // len(scaled))
    parts = []
    for begin in range(0, _INTERVAL_DRAWS, step):
        size = (min(step, _INTERVAL_DRAWS - begin), len(scaled))
        parts.append(scaled[generator.integers(0, len(scaled), size)].mean(axis=1))
    return np.concatenate(parts)


def _t_spread(generator: np.random.Generator, freedom: float) -> NDArray[np.float64]:
    """Factors that turn normal draws into draws from Student's t."""
    spread: NDArray[np.float64] = (freedom / generator.chisquare(freedom, _INTERVAL_DRAWS)) ** 0.5
    return spread


def _estimate(
    value: float, error: float, draws: NDArray[np.float64], level: float, languages: int, items: int | None
) -> Estimate:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, error, float(low), float(high), languages, items)
