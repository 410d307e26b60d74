"""From a law to a mix: the least objective within limits, caps and reach, and the front of all such mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emma.tools.laws.law import Law

__all__ = ["FRONT", "MARGIN", "Problem", "Solution", "front", "solve"]

MARGIN = 2.75
"""Standard errors of the law that stay between a group's limit and its prediction (docs/optimise.md: how it was chosen)."""
FRONT = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5)
"""Factors of all limits at which the front is solved."""
_STARTS = 4
_STEP = 1e-6
"""For the slopes of the margins, in logarithms of shares."""


@dataclass(frozen=True)
class Problem:
    """What a mix may be.

    Attributes:
        law: predicts losses at the target's budget.
        weights: of each group in the objective [groups], summing to 1.
        limits: by how much each group's loss may rise, as a part of the recipe's; infinite where it may rise freely.
        reach: largest change of the logarithm of a share.
        caps: largest share of each lever [levers].
        free: levers whose share may change [levers].
        margin: see `MARGIN`.
    """

    law: Law
    weights: np.ndarray
    limits: np.ndarray
    reach: float
    caps: np.ndarray
    free: np.ndarray
    margin: float = MARGIN

    @property
    def base(self) -> np.ndarray:
        """Shares of the recipe [levers]."""
        return self.law.base

    def changes(self, shares: np.ndarray) -> np.ndarray:
        """Predicted change of each group against the recipe, as a part of its loss [groups]."""
        before, after = self.law.predict(np.stack([self.base, shares]))
        return np.asarray(after / before - 1.0)

    def objective(self, shares: np.ndarray) -> float:
        """Predicted change of the objective, as a part of the recipe's."""
        before, after = self.law.predict(np.stack([self.base, shares])) @ self.weights
        return float(after / before - 1.0)

    def room(self, shares: np.ndarray) -> np.ndarray:
        """What is left of each limit at shares [runs, levers], as a part of the recipe's loss [runs, limited groups];
        margins are taken off."""
        some = np.isfinite(self.limits)
        limits = np.where(some, self.limits, 0.0)
        before = self.law.predict(self.base[None])[0]
        margins = self.margin * self.law.error(shares, limits) if self.margin else 0.0
        return np.asarray(((1.0 + limits) - (self.law.predict(shares) + margins) / before)[:, some])


@dataclass(frozen=True)
class Solution:
    """A mix: shares [levers], the predicted change of the objective as a part of the recipe's, and of each group."""

    shares: np.ndarray
    objective: float
    changes: np.ndarray


def solve(problem: Problem, starts: int = _STARTS) -> Solution:
    """The mix of the least predicted objective; the recipe's own if none is better. Searches begin there and at random
    places, `starts` in all."""
    random = np.random.default_rng(0)
    begin = [np.zeros(len(problem.base))]
    begin += [random.uniform(-0.5, 0.5, len(problem.base)) * problem.reach for _ in range(starts - 1)]
    found = [_kept(problem, _search(problem, start)) for start in begin]
    best = min([problem.base, *found], key=problem.objective)
    return Solution(best, problem.objective(best), problem.changes(best))


def _kept(problem: Problem, shares: np.ndarray) -> np.ndarray:
    """The mix itself, or the last one between the recipe's and it that keeps every limit: a search ends within its own
    tolerance, or nowhere."""
    step = np.log(shares / problem.base)
    parts = np.linspace(1.0, 0.0, 201)
    nearer = problem.base * np.exp(parts[:, None] * step)
    nearer[:, problem.free] *= _left(problem, nearer) / nearer[:, problem.free].sum(axis=1, keepdims=True)
    kept = (nearer <= problem.caps * (1 + 1e-9)).all(axis=1)
    kept &= (np.abs(np.log(nearer / problem.base)) <= problem.reach + 1e-6).all(axis=1)
    kept &= (problem.room(nearer) >= -1e-7).all(axis=1)
    return nearer[int(np.argmax(kept))] if kept.any() else problem.base


def _left(problem: Problem, shares: np.ndarray) -> np.ndarray:
    """What the fixed levers leave to the others."""
    return np.asarray(1.0 - shares[:, ~problem.free].sum(axis=1, keepdims=True))


def _search(problem: Problem, start: np.ndarray) -> np.ndarray:
    """One search by SLSQP over the logarithms of the free shares; that they sum to 1 is a constraint."""
    from scipy.optimize import minimize

    law, base, free = problem.law, problem.base, problem.free
    before = law.predict(base[None])[0]
    scale = float(before @ problem.weights)
    some = np.isfinite(problem.limits)

    def whole(move: np.ndarray) -> np.ndarray:
        shares = base.copy()
        shares[free] = base[free] * np.exp(move)
        return shares

    # In percent, which is of the order of 1.
    def objective(move: np.ndarray) -> tuple[float, np.ndarray]:
        shares = whole(move)
        slope = (problem.weights @ law.gradient(shares)) * shares
        return 100 * float(law.predict(shares[None])[0] @ problem.weights) / scale, 100 * slope[free] / scale

    def room(move: np.ndarray) -> np.ndarray:
        return 100 * problem.room(whole(move)[None])[0]

    def room_slope(move: np.ndarray) -> np.ndarray:
        near = move + _STEP * np.vstack([np.eye(len(move)), -np.eye(len(move))])
        ahead, behind = np.split(problem.room(np.stack([whole(each) for each in near])), 2)
        return np.asarray(100 * (ahead - behind).T / (2 * _STEP))

    constraints: list[dict[str, object]] = [
        {
            "type": "eq",
            "fun": lambda move: 100 * (whole(move).sum() - 1.0),
            "jac": lambda move: 100 * whole(move)[free],
        }
    ]
    if some.any():
        constraints.append({"type": "ineq", "fun": room, "jac": room_slope})
    highest = np.minimum(problem.reach, np.log(np.maximum(problem.caps / base, 1.0)))[free]
    found = minimize(
        objective,
        np.clip(start[free], -problem.reach, highest),
        jac=True,
        bounds=[(-problem.reach, high) for high in highest],
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-7},
    )
    return whole(np.clip(np.nan_to_num(found.x), -problem.reach, highest))


def front(problem: Problem, factors: Sequence[float] = FRONT) -> list[Solution]:
    """Solutions with all limits times each factor."""
    some = np.isfinite(problem.limits)
    finite = np.where(some, problem.limits, 0.0)
    return [solve(replace(problem, limits=np.where(some, finite * factor, np.inf))) for factor in factors]
