"""Laws of a validation group's loss in the shares of a mix: their values, slopes and priors.

Each model gives the loss of all groups at once. Shares r are effective ones, r⁰ those of the recipe, ℓ the group's level
there, and every part of a level or exponent is a sigmoid of its parameter, so that no fit can leave its bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["MODELS", "STEEPEST", "Model", "Values", "sigmoid"]

STEEPEST = 3.0
"""Largest exponent γ of `transfer`."""
_TYPICAL_TRANSFER = 0.05
_LEAST_RATIO = 0.1
"""Least share, of the recipe's, that `ridge` tells from zero; designs of the default spread hardly reach below it."""


class Values(NamedTuple):
    """Losses [runs, groups], and their derivatives by parameters [runs, groups, parameters] and by effective shares
    [runs, groups, levers]."""

    losses: np.ndarray
    by_parameters: np.ndarray
    by_shares: np.ndarray


@dataclass(frozen=True)
class Model:
    """A family of laws.

    Attributes:
        values: of parameters [groups, parameters], effective shares [runs, levers] and those of the recipe [levers].
        typical: centre of the prior, by number of levers; the first parameter, the level, has none.
        spread: its standard deviations; 0 fixes a parameter, infinite leaves it free.
        offset: place of the first parameter of a lever, if that of a group's own lever is fixed at 0; None if it is not.
    """

    values: Callable[[np.ndarray, np.ndarray, np.ndarray], Values]
    typical: Callable[[int], np.ndarray]
    spread: Callable[[int], np.ndarray]
    offset: int | None = None


def sigmoid(value: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ᵛ), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * value)))


def _logit(value: float) -> float:
    return float(np.log(value / (1.0 - value)))


def _transfer(parameters: np.ndarray, reached: np.ndarray, base: np.ndarray) -> Values:
    """ℓ · (1 − a + a · u^(−γ)), u = Σ_j t_j r_j / Σ_j t_j r⁰_j; t is 1 for a group's own lever. A power of own text (He et
    al., arXiv 2410.12883) where other text counts as a part of it (2510.22037); E = ℓ · (1 − a)."""
    level, part, bend = parameters[:, 0], sigmoid(parameters[:, 1]), sigmoid(parameters[:, 2])
    counts, exponent = np.exp(parameters[:, 3:]), STEEPEST * bend
    now, then = reached @ counts.T, counts @ base
    log = np.log(now / then)
    power = np.exp(-exponent * log)
    shape = 1.0 - part + part * power
    steep = -level * part * exponent * power
    slopes = np.empty((*now.shape, parameters.shape[1]))
    slopes[..., 0] = shape
    slopes[..., 1] = level * part * (1.0 - part) * (power - 1.0)
    slopes[..., 2] = steep * log * (1.0 - bend)
    slopes[..., 3:] = (
        steep[..., None] * counts * (reached[:, None, :] / now[..., None] - base / then[:, None])
    )
    return Values(level * shape, slopes, (steep / now)[..., None] * counts)


def _log_linear(parameters: np.ndarray, reached: np.ndarray, base: np.ndarray) -> Values:
    """ℓ · (1 − a + a · exp(Σ_j b_j (r_j / r⁰_j − 1))): c + exp(a · p), as Olmix has it (arXiv 2602.12237)."""
    level, part = parameters[:, 0], sigmoid(parameters[:, 1])
    moved = reached / base - 1.0
    power = np.exp(np.clip(moved @ parameters[:, 2:].T, -50.0, 50.0))
    shape = 1.0 - part + part * power
    slopes = np.empty((*power.shape, parameters.shape[1]))
    slopes[..., 0] = shape
    slopes[..., 1] = level * part * (1.0 - part) * (power - 1.0)
    slopes[..., 2:] = (level * part * power)[..., None] * moved[:, None, :]
    return Values(level * shape, slopes, (level * part * power)[..., None] * parameters[:, 2:] / base)


def _ridge(parameters: np.ndarray, reached: np.ndarray, base: np.ndarray) -> Values:
    """ℓ · (1 + Σ_j b_j log(r_j / r⁰_j)): ridge regression in log shares, of another family than the others. Where a small
    mix got nothing of a lever (no document fits its tokens), the logarithm's least ratio stands for zero."""
    held = np.maximum(reached, _LEAST_RATIO * base)
    level, log = parameters[:, 0], np.log(held / base)
    shape = 1.0 + log @ parameters[:, 1:].T
    slopes = np.empty((*shape.shape, parameters.shape[1]))
    slopes[..., 0] = shape
    slopes[..., 1:] = level[:, None] * log[:, None, :]
    return Values(
        level * shape,
        slopes,
        np.where(reached == held, 1.0 / held, 0.0)[:, None, :] * (level[:, None] * parameters[:, 1:]),
    )


MODELS = {
    "transfer": Model(
        _transfer,
        # Half of a level is what shares can change; γ is 0.3. Wide: they only keep a fit finite where runs say nothing.
        lambda levers: np.array([0.0, 0.0, _logit(0.3 / STEEPEST), *[np.log(_TYPICAL_TRANSFER)] * levers]),
        lambda levers: np.array([np.inf, 1.5, 1.5, *[2.0] * levers]),
        offset=3,
    ),
    "log_linear": Model(
        _log_linear,
        lambda levers: np.zeros(2 + levers),
        lambda levers: np.array([np.inf, 1.5, *[0.05] * levers]),
    ),
    "ridge": Model(
        _ridge,
        lambda levers: np.zeros(1 + levers),
        lambda levers: np.array([np.inf, *[0.05] * levers]),
    ),
}
