"""Bootstrap errors of ratios over documents and of averages over languages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWS", "error_of", "mean_over_languages", "ratio_draws"]

DRAWS = 1000
"""Bootstrap resamples; the error of the error is about 2 %."""

# Documents resampled at once, in draws × documents.
_CELLS_AT_ONCE = 4 << 20


def _generator(name: str) -> np.random.Generator:
    """A generator that depends on nothing but `name`, so that two models' draws over the same documents are paired."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def ratio_draws(
    numerator: Sequence[float], denominator: Sequence[float], name: str, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Bootstrap draws of `sum(numerator) / sum(denominator)` over documents.

    Args:
        numerator: one value a document, e.g. bits.
        denominator: one positive value a document, e.g. bytes.
        name: seeds the draws; equal names resample equal documents.
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
    """Standard error: the draws' standard deviation; None for fewer than two documents, where nothing varies."""
    return float(np.std(draws, ddof=1)) if count > 1 else None


def mean_over_languages(draws: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Draws of an average over languages that resample languages, and documents inside each.

    Args:
        draws: [languages, draws], document-level draws of each language.
        name: seeds the choice of languages.

    Returns:
        float64 array [draws].
    """
    languages, count = draws.shape
    chosen = _generator(name).integers(0, languages, size=(languages, count))
    resampled: NDArray[np.float64] = np.take_along_axis(draws, chosen, axis=0).mean(axis=0)
    return resampled
