"""What a metric yields: a language's value, its error, and one number (or row of numbers) per item."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.tools.evaluation.bootstrap import DRAWS, error_of

__all__ = ["Response", "Score", "mean_score", "resample", "statistics_score"]


@dataclass(frozen=True)
class Response:
    """A model's response to one item.

    `likelihoods` holds the log-likelihood of each choice, in nats; `text` a generated answer, unprocessed, or `texts`
    several that are programs, and `outcomes` how these ended; `nll`, `tokens` and `bytes` the negative log-likelihood
    (in nats) and the size of the prompt itself.
    """

    likelihoods: tuple[float, ...] = ()
    text: str | None = None
    texts: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    nll: float | None = None
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Score:
    """Score of one language by one metric.

    Attributes:
        value: the score.
        error: its standard error over items; None if it cannot be estimated.
        n: number of items behind it.
        items: one value per item (None: left out), or empty if the metric has no values per item.
        signature: the metric's signature, if its library has one.
    """

    value: float
    error: float | None
    n: int
    items: list[Any] = field(default_factory=list)
    signature: str = ""


def mean_score(items: Sequence[float | None], signature: str = "") -> Score:
    """Mean over the items that have a value, with its standard error; 0 if there are none."""
    values = [value for value in items if value is not None]
    if not values:
        return Score(0.0, None, 0, list(items), signature)
    mean = math.fsum(values) / len(values)
    error = None
    if len(values) > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        error = math.sqrt(variance / len(values))
    return Score(mean, error, len(values), list(items), signature)


def resample(count: int, name: str, draws: int = DRAWS) -> NDArray[np.int64]:
    """How often each of `count` items is in each bootstrap draw, [draws, count]; equal names draw equally."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def statistics_score(
    items: Sequence[Sequence[float]], value_of: Callable[[NDArray[np.float64]], float], signature: str = ""
) -> Score:
    """A score that is a function of the sum of the items' statistics, with its bootstrap error.

    Args:
        items: one row of statistics per item.
        value_of: computes the score from a sum of rows.
        signature: the metric's signature.
    """
    if not items:
        return Score(0.0, None, 0, [], signature)
    table = np.asarray(items, np.float64)
    drawn = np.array([value_of(row) for row in resample(len(items), "items") @ table])
    return Score(
        value_of(table.sum(axis=0)),
        error_of(drawn, len(items)),
        len(items),
        [list(row) for row in items],
        signature,
    )
