"""From the proxies' results to a proposal: noise, the law with what it missed, the front, intervals of shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.tools.laws.law import Law, fit_law
from emma.tools.laws.stored import StoredLaw
from emma.tools.optimise.propose import FRONT, Problem, Solution, front, solve
from emma.tools.optimise.study import Study
from emma.tools.optimise.trials import Trials

__all__ = ["Fit", "HeldOut", "fit", "group_noise"]

LEAST_CEILING = 0.5
"""Below this part of explainable variance, a group's noise hides what shares do to it."""
_CLEAR = 3.0
"""The design should spread the objective by so many times the noise."""
_PRIOR_RUNS = 4.0
_REFITS = 20


@dataclass(frozen=True)
class HeldOut:
    """What a law said of proxies that it was not fitted to.

    Attributes:
        names: of the proxies.
        predicted, measured: the objective's bits per byte [proxies].
        errors: root mean square error of each group [groups].
        rank: rank correlation of predicted and measured objective.
    """

    names: list[str]
    predicted: np.ndarray
    measured: np.ndarray
    errors: np.ndarray
    rank: float

    @property
    def error(self) -> float:
        """Root mean square error of the objective, in bits per byte."""
        return float(np.sqrt(np.mean((self.predicted - self.measured) ** 2)))


@dataclass(frozen=True)
class Fit:
    """What the proxies say.

    Attributes:
        trials: their results.
        weights: of the groups in the objective [groups].
        limits: of the settings [groups].
        limited: which limits the search holds: those of groups that are not drowned in noise [groups].
        noise: standard deviation of one run's loss [groups], and `objective_noise` of its objective.
        ceilings: part of each group's variance over the design that is not noise [groups].
        law: at the proxies' budget, and `target_law` at the run's.
        held_out: of the law.
        front: solutions at multiples of the limits (`propose.FRONT`).
        proposal: the solution at the limits themselves.
        cross_check: that of a law of another family.
        intervals: 5th and 95th percentile of each share over refits [2, levers].
    """

    trials: Trials
    weights: np.ndarray
    limits: np.ndarray
    limited: np.ndarray
    noise: np.ndarray
    objective_noise: float
    ceilings: np.ndarray
    law: Law
    target_law: Law
    held_out: HeldOut
    front: list[Solution]
    proposal: Solution
    cross_check: Solution
    intervals: np.ndarray

    @property
    def objective(self) -> np.ndarray:
        """Objective of each trial [trials]."""
        return np.asarray(self.trials.losses @ self.weights)

    @property
    def signal(self) -> float:
        """Spread of the objective over the design, in units of one run's noise."""
        designs = self.trials.of("mix")
        return float(np.std(self.objective[designs], ddof=1) / max(self.objective_noise, 1e-12))

    def notes(self) -> list[str]:
        """What a reader must know before believing the rest."""
        notes = []
        if self.signal < _CLEAR:
            notes.append(
                f"the design spreads the objective by {self.signal:.1f} times the noise, which is less than {_CLEAR:g}: "
                "longer proxies or larger validation groups would say more"
            )
        groups = self.trials.groups
        drowned = [groups[n] for n in np.flatnonzero(np.isfinite(self.limits) & ~self.limited)]
        if drowned:
            notes.append(
                f"the noise of {', '.join(drowned)} is more than half of what shares do to them: the search does not hold "
                "their limits; the check does"
            )
        for what, names in (("have no result", self.trials.missing), ("diverged", self.trials.diverged)):
            if names:
                notes.append(
                    f"{', '.join(names)} {what} and are left out. Mixes that fail are not a random choice of mixes: what the "
                    "law says near them is a guess"
                )
        return notes

    def to_dict(self, study: Study) -> dict[str, Any]:
        """Content of `fit.json`."""
        levers = [lever.name for lever in study.target.levers]
        return {
            "law": self.law.model,
            "levers": dict(zip(levers, study.base.tolist(), strict=True)),
            "groups": {
                name: {
                    "own": levers[int(self.law.own[n])],
                    "weight": float(self.weights[n]),
                    "limit": float(self.limits[n]) if np.isfinite(self.limits[n]) else None,
                    "held_in_search": bool(self.limited[n]),
                    "noise": float(self.noise[n]),
                    "ceiling": float(self.ceilings[n]),
                    "held_out_error": float(self.held_out.errors[n]),
                    "recipe": float(self.law.parameters[n, 0]),
                }
                for n, name in enumerate(self.trials.groups)
            },
            "objective": {
                "noise": self.objective_noise,
                "signal": self.signal,
                "held_out_error": self.held_out.error,
                "held_out_rank": self.held_out.rank,
                "doubt": self.law.doubt,
            },
            "proposal": _written(self.proposal, levers, self.trials.groups),
            "cross_check": _written(self.cross_check, levers, self.trials.groups),
            "intervals": {name: self.intervals[:, n].tolist() for n, name in enumerate(levers)},
            "notes": self.notes(),
            "store": self.trials.store,
            "fitted": StoredLaw(self.target_law, levers, self.trials.groups).to_dict(),
        }


def _written(solution: Solution, levers: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    return {
        "objective": solution.objective,
        "shares": dict(zip(levers, solution.shares.tolist(), strict=True)),
        "changes": dict(zip(groups, solution.changes.tolist(), strict=True)),
    }


def group_noise(losses: np.ndarray) -> np.ndarray:
    """Standard deviation of one run's loss [groups] from replicates [runs, groups]: few replicates say little of one group,
    so each is drawn towards the median of all, relative to their losses."""
    runs, mean = len(losses), losses.mean(axis=0)
    own = losses.std(axis=0, ddof=1) / mean
    pooled = np.sqrt(((runs - 1) * own**2 + _PRIOR_RUNS * np.median(own) ** 2) / (runs - 1 + _PRIOR_RUNS))
    return np.asarray(pooled * mean)


def fit(study: Study, trials: Trials) -> Fit:
    """Fits the laws and solves for the front.

    Raises:
        UserError: too few proxies have a result.
    """
    groups, settings = trials.groups, study.settings
    weights, limits, own = study.objective_weights(groups), study.limits(groups), study.own_levers(groups)
    designs, replicates = trials.of("mix"), trials.of("recipe")
    if len(replicates) < 3 or len(designs) < study.least:
        raise UserError(
            f"{len(designs)} mixes and {len(replicates)} replicates have a result; a fit of {int(study.free.sum())} shares needs "
            f"at least {study.least} and 3. Fix: run those that have none (--local, or emma sweep)"
        )
    noise = group_noise(trials.losses[replicates])
    objective_noise = float(group_noise((trials.losses[replicates] @ weights)[:, None])[0])
    spread = trials.losses[designs].std(axis=0, ddof=1)
    ceilings = np.clip(1.0 - (noise / np.maximum(spread, 1e-12)) ** 2, 0.0, 1.0)
    limited = np.isfinite(limits) & (ceilings >= LEAST_CEILING)
    if not limited.any():
        raise UserError(
            "the noise hides what shares do to every group that has a limit. Fix: longer proxies (schedule.steps), or larger "
            "validation groups (data.mix.validation.max_tokens), in proxy.overrides"
        )

    def fitted(model: str, rows: np.ndarray) -> Law:
        return fit_law(
            model, trials.shares[rows], trials.losses[rows], own, study.base, noise, study.proxy.repetition
        )

    def problem(law: Law) -> Problem:
        return Problem(
            replace(law, repetition=study.target.repetition),
            weights,
            np.where(limited, limits, np.inf),
            settings.reach,
            study.target.caps,
            study.free,
        )

    def whole(model: str) -> tuple[Law, HeldOut]:
        """The law fitted to all, with the errors that it made where it was fitted to fewer."""
        count = max(2, round(settings.held_out * len(designs)))
        # Evenly over the design: a Sobol sequence's parts are designs too.
        aside = designs[np.linspace(0, len(designs) - 1, count).round().astype(int)]
        rest = np.setdiff1d(np.concatenate([replicates, designs]), aside)
        tried = fitted(model, rest)
        predicted, measured = tried.predict(trials.shares[aside]), trials.losses[aside]
        held_out = HeldOut(
            [trials.names[n] for n in aside],
            predicted @ weights,
            measured @ weights,
            np.sqrt(((predicted - measured) ** 2).mean(axis=0)),
            _rank_correlation(predicted @ weights, measured @ weights),
        )
        doubt = tried.with_doubt(trials.shares[aside], measured, noise).doubt
        return replace(fitted(model, np.arange(len(trials.names))), doubt=doubt), held_out

    law, held_out = whole(settings.law)
    asked = problem(law)
    line = front(asked)
    proposal = _simplest(
        asked, line[FRONT.index(1.0)], objective_noise / float(law.predict(study.base[None])[0] @ weights)
    )
    random = np.random.default_rng(settings.seed)
    refits = []
    for _ in range(_REFITS):
        rows = np.concatenate(
            [random.choice(replicates, len(replicates)), random.choice(designs, len(designs))]
        )
        refits.append(solve(problem(replace(fitted(settings.law, rows), doubt=law.doubt)), starts=1).shares)
    other = "transfer" if settings.law == "ridge" else "ridge"
    return Fit(
        trials,
        weights,
        limits,
        limited,
        noise,
        objective_noise,
        ceilings,
        law,
        asked.law,
        held_out,
        line,
        proposal,
        solve(problem(whole(other)[0])),
        np.quantile(np.array(refits), [0.05, 0.95], axis=0),
    )


def _simplest(problem: Problem, found: Solution, noise: float) -> Solution:
    """The solution without the moves that nobody would notice: the smallest go back to the recipe's shares, one after the
    other, as long as the objective stays within a tenth of one run's noise."""
    free = problem.free.copy()
    best = found
    for place in np.argsort(np.abs(np.log(found.shares / problem.base))):
        if not free[place] or free.sum() <= 2:
            continue
        free[place] = False
        tried = solve(replace(problem, free=free.copy()), starts=1)
        if tried.objective > found.objective + 0.1 * noise:
            break
        best = tried
    return best


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import spearmanr

    value = float(spearmanr(one, other).statistic)
    return value if np.isfinite(value) else 0.0
