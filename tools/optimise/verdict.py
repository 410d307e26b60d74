"""The check of a proposal: runs with new seeds against what the law said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.tools.optimise.fit import Fit
from emma.tools.optimise.trials import Trials

__all__ = ["Comparison", "Verdict", "judge"]

_CERTAIN = 0.95


@dataclass(frozen=True)
class Comparison:
    """A mix against the run's own, both measured.

    Attributes:
        mix: its name in the check.
        runs: of it and of the run's own mix.
        predicted, measured: change of the objective as a part of the recipe's; `error` is half of its 95 % interval.
        groups: predicted and measured change of each group and half of its 95 % interval [groups, 3].
        broken: groups that rose above their limit by more than their interval.
    """

    mix: str
    runs: tuple[int, int]
    predicted: float
    measured: float
    error: float
    groups: np.ndarray
    broken: list[str]

    @property
    def word(self) -> str:
        """`confirmed`, `not confirmed` or `within noise`."""
        if self.broken or self.measured > self.error:
            return "not confirmed"
        return "confirmed" if self.measured < -self.error else "within noise"


@dataclass(frozen=True)
class Verdict:
    """What the check says; `comparisons` begin with the proposal."""

    comparisons: list[Comparison]
    trials: Trials

    @property
    def proposal(self) -> Comparison:
        """The proposal against the run's own mix."""
        return self.comparisons[0]

    @property
    def better(self) -> Comparison | None:
        """Another mix that measured better than the proposal by more than both intervals, and broke no limit."""
        own = self.proposal
        others = [
            each
            for each in self.comparisons[1:]
            if each.word == "confirmed" and each.measured + each.error < own.measured - own.error
        ]
        return min(others, key=lambda each: each.measured, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Content of `check.json`."""
        return {
            "verdict": self.proposal.word,
            "better": None if self.better is None else self.better.mix,
            "comparisons": [
                {
                    "mix": each.mix,
                    "word": each.word,
                    "runs": list(each.runs),
                    "predicted": each.predicted,
                    "measured": each.measured,
                    "error": each.error,
                    "broken": each.broken,
                    "groups": {
                        name: dict(zip(("predicted", "measured", "error"), row.tolist(), strict=True))
                        for name, row in zip(self.trials.groups, each.groups, strict=True)
                    },
                }
                for each in self.comparisons
            ],
            "missing": self.trials.missing,
            "diverged": self.trials.diverged,
        }


def judge(fit: Fit, trials: Trials, mixes: dict[str, np.ndarray], *, alike: bool = True) -> Verdict:
    """Compares the mixes (shares [levers] by name) of a check with the run's own.

    The noise of one run, relative to its loss, comes from the check's own runs and, if they are `alike`, from the proxies'
    replicates; intervals are Student's with their degrees of freedom.

    Raises:
        UserError: a mix has no result, or a seed is one of the proxies'.
    """
    if shared := sorted(set(trials.seeds) & set(fit.trials.seeds)):
        raise UserError(
            f"the check has the seed {shared[0]}, which the proxies had: what suggested a mix cannot prove it. Fix: remove "
            "the check's folder and run it again"
        )
    for name in ("recipe", *mixes):
        if not len(trials.of(name)):
            raise UserError(f"the check has no result of {name}, so there is nothing to compare")
    weights, names = fit.weights, [name for name in mixes if name != "recipe"]
    replicates = [fit.trials.losses[fit.trials.of("recipe")]] if alike else []
    sets = [*replicates, *(trials.losses[trials.of(name)] for name in ("recipe", *names))]
    noise, freedom = _relative_noise([np.column_stack([each, each @ weights]) for each in sets])
    own = trials.losses[trials.of("recipe")]
    comparisons = []
    for name in names:
        runs = trials.losses[trials.of(name)]
        width = _width(freedom) * noise * np.sqrt(1 / len(runs) + 1 / len(own))
        measured = runs.mean(axis=0) / own.mean(axis=0) - 1.0
        before, after = fit.law.predict(np.stack([fit.law.base, mixes[name]]))
        over = np.isfinite(fit.limits) & (measured - width[:-1] > fit.limits)
        comparisons.append(
            Comparison(
                name,
                (len(runs), len(own)),
                float(after @ weights / (before @ weights) - 1.0),
                float((runs @ weights).mean() / (own @ weights).mean() - 1.0),
                float(width[-1]),
                np.column_stack([after / before - 1.0, measured, width[:-1]]),
                [trials.groups[n] for n in np.flatnonzero(over)],
            )
        )
    return Verdict(comparisons, trials)


def _relative_noise(sets: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """Standard deviation of one run as a part of its loss, pooled over runs of several mixes, and its degrees of freedom."""
    squares, freedom = np.zeros(sets[0].shape[1]), 0
    for runs in sets:
        relative = runs / runs.mean(axis=0)
        squares += ((relative - 1.0) ** 2).sum(axis=0)
        freedom += len(runs) - 1
    return np.sqrt(squares / max(freedom, 1)), freedom


def _width(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + _CERTAIN / 2, freedom))
