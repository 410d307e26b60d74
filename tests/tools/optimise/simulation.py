"""Simulated optimisations: a true law, proxies with noise, and what a proposal made of them really does.

    python -m tests.tools.optimise.simulation [--draws 100]

prints the table of docs/optimise.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emma.tools.laws.law import Law, Repetition, fit_law
from emma.tools.optimise.fit import group_noise
from emma.tools.optimise.propose import MARGIN, Problem, solve

__all__ = ["Draw", "Truth", "design", "draw", "make_truth", "simulate"]

LEVERS = 13
REACH = 1.2


@dataclass(frozen=True)
class Truth:
    """A true law over as many groups as levers, the weights of its objective, and the noise of one run [groups]."""

    law: Law
    weights: np.ndarray
    noise: np.ndarray

    @property
    def base(self) -> np.ndarray:
        return self.law.base


def make_truth(
    seed: int, noise: float, *, spread: float = 1.0, steep: float = 1.0, kind: str = "transfer"
) -> Truth:
    """A random truth.

    Args:
        seed: of the truth.
        noise: of one run as a part of its loss; of each group, times a log-normal number of σ 0.5.
        spread: σ of the logarithms of transfers around that of 0.05.
        steep: factor of all exponents; 0: shares change nothing.
        kind: `transfer`, or `log_linear`: a truth of another family than the law that is fitted.
    """
    random = np.random.default_rng([1, seed])
    base = np.maximum(random.dirichlet(np.full(LEVERS, 1.5)), 0.01)
    base /= base.sum()
    level = random.uniform(1.5, 4.5, LEVERS)
    part, exponent = random.uniform(0.3, 0.7, LEVERS), random.uniform(0.1, 0.5, LEVERS) * max(steep, 1e-9)
    transfer = random.normal(np.log(0.05), spread, (LEVERS, LEVERS))
    np.fill_diagonal(transfer, 0.0)
    counts = np.exp(transfer)
    columns = [level, np.log(part / (1 - part))]
    if kind == "transfer":
        parameters = np.column_stack([*columns, np.log(exponent / (3 - exponent)), transfer])
    else:
        # The slopes that the other truth has at the recipe's shares.
        share = counts * base / (counts @ base)[:, None]
        parameters = np.column_stack([*columns, -exponent[:, None] * share])
    covariance = np.zeros((LEVERS, parameters.shape[1], parameters.shape[1]))
    repetition = Repetition(np.zeros(LEVERS), 0.0)
    law = Law(kind, base, np.arange(LEVERS), parameters, covariance, repetition)
    weights = np.zeros(LEVERS)
    weights[random.choice(LEVERS, 4, replace=False)] = random.uniform(0.5, 2.0, 4)
    sigma = level * noise * np.exp(random.normal(0, 0.5, LEVERS))
    return Truth(law, weights / weights.sum(), sigma)


def design(base: np.ndarray, runs: int, seed: int, spread: float = 0.8) -> np.ndarray:
    """Shares [runs, levers] as a study designs them, without caps."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(len(base), scramble=True, rng=np.random.default_rng(seed)).random(
        1 << (runs - 1).bit_length()
    )
    shares = base * np.exp(spread * ndtri(np.clip(points[:runs], 1e-9, 1 - 1e-9)))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Draw:
    """What came of one simulated optimisation; changes are parts of a loss.

    Attributes:
        gain, best, predicted: fall of the objective: of the proposal in truth, of the best mix within the limits, and as
            predicted.
        worst: largest true rise of any group.
        errors: root mean square error of each group on 64 new mixes, in units of its noise [groups].
        shares: of the proposal.
    """

    gain: float
    best: float
    predicted: float
    worst: float
    errors: np.ndarray
    shares: np.ndarray


def fitted(truth: Truth, proxies: int, seed: int, *, replicates: int = 5, model: str = "transfer") -> Law:
    """The law that a study would fit to noisy runs of a truth."""
    random = np.random.default_rng([2, seed])
    shares = np.vstack([design(truth.base, proxies, seed), np.tile(truth.base, (replicates, 1))])
    losses = truth.law.predict(shares) + random.normal(size=(len(shares), LEVERS)) * truth.noise
    noise = group_noise(losses[proxies:])

    def law(rows: np.ndarray) -> Law:
        return fit_law(
            model, shares[rows], losses[rows], truth.law.own, truth.base, noise, truth.law.repetition
        )

    aside = np.linspace(0, proxies - 1, max(2, proxies // 4)).round().astype(int)
    tried = law(np.setdiff1d(np.arange(len(shares)), aside))
    return replace(
        law(np.arange(len(shares))), doubt=tried.with_doubt(shares[aside], losses[aside], noise).doubt
    )


def draw(
    seed: int,
    proxies: int,
    noise: float,
    *,
    limit: float = 0.02,
    margin: float = MARGIN,
    model: str = "transfer",
    kind: str = "transfer",
    steep: float = 1.0,
) -> Draw:
    """One simulated optimisation, with one limit for every group."""
    truth = make_truth(seed, noise, kind=kind, steep=steep)
    law = fitted(truth, proxies, seed, model=model)
    bounds = (np.full(LEVERS, limit), REACH, np.ones(LEVERS), np.ones(LEVERS, bool))
    found = solve(Problem(law, truth.weights, *bounds, margin))
    true = Problem(truth.law, truth.weights, *bounds, 0.0)
    unseen = design(truth.base, 64, seed + 10**6)
    errors = np.sqrt(((law.predict(unseen) - truth.law.predict(unseen)) ** 2).mean(axis=0)) / truth.noise
    return Draw(
        -true.objective(found.shares),
        -solve(true).objective,
        -found.objective,
        float(true.changes(found.shares).max()),
        errors,
        found.shares,
    )


def simulate(seeds: Sequence[int], proxies: int, noise: float, **options: object) -> str:
    """A row of the table: limits kept, worst group, gain and its part of the best."""
    draws = [draw(seed, proxies, noise, **options) for seed in seeds]  # type: ignore[arg-type]
    worst = np.array([each.worst for each in draws])
    gain, best = (np.array([getattr(each, name) for each in draws]) for name in ("gain", "best"))
    predicted = np.array([each.predicted for each in draws])
    said = " ".join(f"{key}={value}" for key, value in options.items())
    return (
        f"| {proxies} | {100 * noise:.1f} % | {said or '–'} | {np.mean(worst <= 0.02):.0%} | "
        f"+{100 * np.quantile(worst, 0.95):.2f} % | −{100 * gain.mean():.1f} % | −{100 * predicted.mean():.1f} % | "
        f"−{100 * best.mean():.1f} % | {gain.sum() / best.sum():.0%} | "
        f"{np.median(np.concatenate([each.errors for each in draws])):.2f} |"
    )


def main() -> None:
    """Prints the table, row by row."""
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs="*")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.draws)
    rows: list[tuple[int, float, dict[str, object]]] = [
        (24, 0.001, {}),
        (24, 0.002, {}),
        (32, 0.001, {}),
        (32, 0.002, {}),
        (32, 0.004, {}),
        (64, 0.004, {}),
        (32, 0.002, {"margin": 0.0}),
        (32, 0.002, {"margin": 1.64}),
        (32, 0.002, {"margin": 2.0}),
        (32, 0.002, {"kind": "log_linear"}),
        (32, 0.002, {"model": "log_linear"}),
        (32, 0.002, {"model": "ridge"}),
    ]
    print("| proxies | noise | | limit kept | 95th worst | gain | predicted | best | part | error / noise |")
    for number in options.rows if options.rows is not None else range(len(rows)):
        proxies, noise, changes = rows[number]
        print(simulate(seeds, proxies, noise, **changes), flush=True)


if __name__ == "__main__":
    main()
