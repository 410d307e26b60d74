"""Verdicts on simulated checks: no false gain, broken limits, seeds that were used before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.optimise.fit import Fit, HeldOut
from emma.tools.optimise.propose import Solution
from emma.tools.optimise.trials import Trials
from emma.tools.optimise.verdict import Verdict, judge
from tests.tools.optimise.simulation import LEVERS, make_truth


def checked(
    seed: int,
    change: np.ndarray,
    *,
    noise: float = 0.003,
    limit: float = 0.02,
    calm: float = 1.0,
    alike: bool = True,
) -> Verdict:
    """A simulated check of a proposal that changes each group's loss by a part [groups]; the proxies' noise is `calm` times
    the check's."""
    truth = make_truth(0, noise)
    random = np.random.default_rng([3, seed])
    level = truth.law.predict(truth.base[None])[0]

    def runs(count: int, level: np.ndarray, factor: float = 1.0) -> np.ndarray:
        return level + factor * random.normal(size=(count, LEVERS)) * truth.noise

    def trials(losses: np.ndarray, names: list[str], seeds: list[int]) -> Trials:
        groups = [f"group-{n}" for n in range(LEVERS)]
        return Trials(names, seeds, np.tile(truth.base, (len(names), 1)), losses, groups)

    proxies = trials(runs(5, level, calm), [f"recipe-{n}" for n in range(5)], list(range(5)))
    nothing = np.zeros(LEVERS)
    solution = Solution(truth.base, 0.0, nothing)
    fit = Fit(
        proxies,
        truth.weights,
        np.full(LEVERS, limit),
        np.ones(LEVERS, bool),
        truth.noise,
        0.01,
        np.ones(LEVERS),
        truth.law,
        truth.law,
        HeldOut([], nothing, nothing, nothing, 0.0),
        [],
        solution,
        solution,
        np.zeros((2, LEVERS)),
    )
    names = [f"{mix}-{n}" for n in range(3) for mix in ("recipe", "proposal")]
    losses = np.concatenate(
        [np.concatenate([runs(1, level), runs(1, level * (1 + change))]) for _ in range(3)]
    )
    check = trials(losses, names, [1000 + n // 2 for n in range(6)])
    return judge(fit, check, {"recipe": truth.base, "proposal": truth.base}, alike=alike)


def test_nothing_gained_is_within_noise() -> None:
    words = [checked(seed, np.zeros(LEVERS)).proposal.word for seed in range(600)]
    assert words.count("within noise") >= 0.93 * len(words)
    assert words.count("confirmed") <= 0.035 * len(words)


def test_proxies_say_nothing_of_the_noise_of_a_check_of_another_kind() -> None:
    nothing = np.zeros(LEVERS)
    words = {
        alike: [checked(seed, nothing, calm=0.1, alike=alike).proposal.word for seed in range(300)]
        for alike in (True, False)
    }
    assert words[False].count("within noise") >= 0.91 * 300 > 0.85 * 300 > words[True].count("within noise")


def test_a_gain_is_confirmed_and_a_loss_is_not() -> None:
    assert checked(0, np.full(LEVERS, -0.02)).proposal.word == "confirmed"
    assert checked(0, np.full(LEVERS, 0.015)).proposal.word == "not confirmed"


def test_a_limit_broken_beyond_the_noise_undoes_a_gain() -> None:
    truth = make_truth(0, 0.003)
    change = np.where(truth.weights > 0, -0.03, 0.0)
    paying = int(np.flatnonzero(truth.weights == 0)[0])
    change[paying] = 0.06
    found = checked(1, change).proposal
    assert found.broken == [f"group-{paying}"] and found.word == "not confirmed" and found.measured < 0
    change[paying] = 0.015
    assert checked(1, change).proposal.word == "confirmed"


def test_seeds_of_the_proxies_are_refused() -> None:
    truth = make_truth(0, 0.003)
    trials = Trials(["recipe-0"], [7], truth.base[None], truth.base[None], ["a"] * LEVERS)
    fit = replace(_fit(), trials=replace(trials, seeds=[7]))
    with pytest.raises(UserError, match="has the seed 7, which the proxies had"):
        judge(fit, trials, {"proposal": truth.base})


def _fit() -> Fit:
    truth = make_truth(0, 0.003)
    nothing = np.zeros(LEVERS)
    solution = Solution(truth.base, 0.0, nothing)
    held = HeldOut([], nothing, nothing, nothing, 0.0)
    trials = Trials([], [], nothing, nothing, [])
    return Fit(
        trials,
        truth.weights,
        nothing,
        nothing > 0,
        nothing,
        0.0,
        nothing,
        truth.law,
        truth.law,
        held,
        [],
        solution,
        solution,
        nothing,
    )
