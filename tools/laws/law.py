"""A law fitted to runs: it predicts every group's loss from shares, and says how far it may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emma.tools.laws.models import MODELS, Model

__all__ = ["Law", "Repetition", "fit_law"]

_LEAST_NOISE, _MOST_NOISE = 0.03, 0.5
"""Bounds of a group's noise over its spread in the runs, which weighs runs against priors."""


@dataclass(frozen=True)
class Repetition:
    """What repeated tokens are worth: e > 1 epochs count as 1 + R* · (1 − exp(−(e − 1) / R*)) (Muennighoff et al.,
    arXiv 2305.16264).

    Attributes:
        epochs: of each lever if it were the whole mix: budget over tokens held [levers].
        constant: R*; 0 counts every token alike, however often it was seen.
    """

    epochs: np.ndarray
    constant: float

    def effective(self, shares: np.ndarray) -> np.ndarray:
        """Effective shares of the budget [..., levers]."""
        if not self.constant:
            return shares
        seen = shares * self.epochs
        worth = 1.0 - self.constant * np.expm1(-np.maximum(seen - 1.0, 0.0) / self.constant)
        return np.where(seen > 1.0, shares * worth / np.maximum(seen, 1e-300), shares)

    def slope(self, shares: np.ndarray) -> np.ndarray:
        """Derivative of each effective share by its share [..., levers]."""
        if not self.constant:
            return np.ones_like(shares)
        return np.exp(-np.maximum(shares * self.epochs - 1.0, 0.0) / self.constant)


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        model: its name in `MODELS`.
        base: shares of the recipe [levers].
        own: lever that is each group's own text [groups].
        parameters: [groups, parameters]; the first is the loss at the recipe's shares.
        covariance: of the parameters [groups, parameters, parameters].
        repetition: of the runs that are asked about.
        doubt: factor of all errors, by what the law missed on runs that it was not fitted to; at least 1.
    """

    model: str
    base: np.ndarray
    own: np.ndarray
    parameters: np.ndarray
    covariance: np.ndarray
    repetition: Repetition
    doubt: float = 1.0

    @property
    def _model(self) -> Model:
        return MODELS[self.model]

    def predict(self, shares: np.ndarray) -> np.ndarray:
        """Losses [runs, groups] at shares [runs, levers]."""
        effective = self.repetition.effective
        return self._model.values(self.parameters, effective(shares), effective(self.base)).losses

    def gradient(self, shares: np.ndarray) -> np.ndarray:
        """Derivatives [groups, levers] of the losses at shares [levers]."""
        effective = self.repetition.effective
        found = self._model.values(self.parameters, effective(shares)[None], effective(self.base))
        return np.asarray(found.by_shares[0] * self.repetition.slope(shares))

    def error(self, shares: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Standard errors [runs, groups] of L(p) − (1 + limit) · L(p⁰) at shares [runs, levers]; limits [groups]."""
        effective = self.repetition.effective
        both = np.concatenate([effective(self.base)[None], effective(shares)])
        slopes = self._model.values(self.parameters, both, effective(self.base)).by_parameters
        change = slopes[1:] - (1.0 + limits)[:, None] * slopes[0]
        variance = np.einsum("rgp,gpq,rgq->rg", change, self.covariance, change)
        return np.asarray(self.doubt * np.sqrt(np.maximum(variance, 0.0)))

    def spread(self, shares: np.ndarray) -> np.ndarray:
        """Standard errors [runs, groups] of the losses themselves at shares [runs, levers]."""
        return self.error(shares, np.full(len(self.parameters), -1.0))

    def with_doubt(self, shares: np.ndarray, losses: np.ndarray, noise: np.ndarray) -> Law:
        """The law with its errors raised to what it missed on runs [runs, levers], [runs, groups] that it was not fitted
        to; `noise` is one run's [groups]."""
        missed = (losses - self.predict(shares)) ** 2 / (self.spread(shares) ** 2 + noise**2)
        return replace(self, doubt=max(1.0, float(np.sqrt(missed.mean()))))

    def parts(self) -> np.ndarray:
        """Which part of each group's effective share comes from which lever in the recipe's mix [groups, levers]; of
        `transfer` only."""
        counts = np.exp(self.parameters[:, 3:]) * self.repetition.effective(self.base)
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def fit_law(
    model: str,
    shares: np.ndarray,
    losses: np.ndarray,
    own: Sequence[int] | np.ndarray,
    base: np.ndarray,
    noise: np.ndarray,
    repetition: Repetition,
) -> Law:
    """Fits each group by itself: the mode of its posterior, with the curvature there as its error.

    Args:
        model: name in `MODELS`.
        shares: of the runs [runs, levers].
        losses: of the runs [runs, groups], in bits per byte.
        own: lever of each group's own text [groups].
        base: shares of the recipe [levers].
        noise: standard deviation of one run's loss [groups].
        repetition: of the runs.
    """
    chosen, reached, start = MODELS[model], repetition.effective(shares), repetition.effective(base)
    fitted = [
        _fit_one(chosen, reached, losses[:, group], int(own[group]), start, float(noise[group]))
        for group in range(losses.shape[1])
    ]
    parameters, covariance = (np.array(each) for each in zip(*fitted, strict=True))
    return Law(model, base, np.asarray(own), parameters, covariance, repetition)


def _fit_one(
    model: Model, reached: np.ndarray, losses: np.ndarray, own: int, base: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import least_squares

    levers, runs = reached.shape[1], len(losses)
    unit = max(float(np.std(losses)), 1e-9 * float(np.mean(losses)))
    unit *= float(np.clip(noise / unit, _LEAST_NOISE, _MOST_NOISE))
    start, tight = model.typical(levers), 1.0 / model.spread(levers)
    free = np.ones(len(start), bool)
    start[0] = float(np.mean(losses))
    if model.offset is not None:
        free[model.offset + own], start[model.offset + own] = False, 0.0
    prior = start.copy()

    def whole(row: np.ndarray) -> np.ndarray:
        parameters = prior.copy()
        parameters[free] = row
        return parameters

    def residuals(row: np.ndarray) -> np.ndarray:
        parameters = whole(row)
        found = model.values(parameters[None], reached, base).losses[:, 0]
        return np.concatenate([(found - losses) / unit, ((parameters - prior) * tight)[free]])

    def slopes(row: np.ndarray) -> np.ndarray:
        found = model.values(whole(row)[None], reached, base).by_parameters[:, 0]
        return np.concatenate([found[:, free] / unit, np.diag(tight)[free][:, free]])

    found = least_squares(residuals, start[free], slopes, method="lm", max_nfev=200)
    data = found.jac[:runs]
    inverse = np.linalg.pinv(found.jac.T @ found.jac, hermitian=True)
    # Runs that scatter around the law by more than their noise say that it is wrong by that much.
    used = float(np.trace(inverse @ (data.T @ data)))
    scatter = float(np.sum(found.fun[:runs] ** 2)) / max(1.0, runs - used)
    covariance = np.zeros((len(start), len(start)))
    covariance[np.ix_(free, free)] = inverse * max(1.0, scatter)
    return whole(found.x), covariance
