"""Proposals on simulated truths: gain, limits, caps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from emma.tools.optimise.fit import group_noise
from emma.tools.optimise.propose import Problem, front, solve
from tests.tools.optimise.simulation import LEVERS, REACH, draw, make_truth


def problem(seed: int = 0, limit: float = 0.02, **changes: object) -> Problem:
    truth = make_truth(seed, 0.002)
    bounds = (np.full(LEVERS, limit), REACH, np.ones(LEVERS), np.ones(LEVERS, bool))
    return replace(Problem(truth.law, truth.weights, *bounds, 0.0), **changes)  # type: ignore[arg-type]


def test_the_noise_of_a_run_is_that_of_replicates_drawn_towards_each_other() -> None:
    random = np.random.default_rng(0)
    level = random.uniform(1, 5, 400)
    losses = level * (1 + 0.01 * random.normal(size=(5, 400)))
    found, own = group_noise(losses) / losses.mean(axis=0), losses.std(axis=0, ddof=1) / losses.mean(axis=0)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.01, rel=0.06)
    assert found.std() < 0.6 * own.std() and np.corrcoef(found, own)[0, 1] > 0.95


def test_with_no_group_allowed_to_get_worse_the_recipe_stays() -> None:
    for seed in range(3):
        asked = problem(seed, 0.0)
        found = solve(asked)
        assert found.objective <= 0 and found.changes.max() <= 1e-6
        lost = solve(replace(asked, limits=np.full(LEVERS, 0.02)))
        assert lost.objective < found.objective - 0.005


def test_the_front_falls_with_its_limits_and_keeps_each() -> None:
    points = front(problem(1))
    gains = [point.objective for point in points]
    assert all(after < before + 1e-6 for before, after in pairwise(gains))
    for factor, point in zip((0.0, 0.25, 0.5, 1.0, 1.5, 2.5), points, strict=True):
        assert point.changes.max() <= 0.02 * factor + 1e-5
        assert point.shares.sum() == pytest.approx(1, abs=1e-9)


def test_caps_reach_and_fixed_shares_hold() -> None:
    free = np.ones(LEVERS, bool)
    free[[0, 5]] = False
    asked = problem(2, 0.05, free=free, reach=0.4)
    caps = asked.base * 1.11
    found = solve(replace(asked, caps=caps))
    assert np.all(found.shares <= caps * (1 + 1e-8))
    assert np.all(np.abs(np.log(found.shares / asked.base)) <= 0.4 + 1e-6)
    assert np.array_equal(found.shares[~free], asked.base[~free])
    # Several caps bind at once: the search goes along them, and does not stop at the first.
    assert found.objective < -0.0075 and np.sum(found.shares > 0.999 * caps) >= 6
    # What has no limit goes to its bound.
    unlimited = solve(problem(2, np.inf))
    assert np.sum(np.abs(np.log(unlimited.shares / asked.base)) > REACH - 0.05) >= 4


def test_margins_grow_with_the_distance_and_limits_hold_in_truth() -> None:
    """A few of the hundred draws below."""
    draws = [draw(seed, 32, 0.002) for seed in range(8)]
    assert sum(each.worst > 0.02 for each in draws) <= 1
    assert max(each.worst for each in draws) < 0.022
    assert sum(each.gain for each in draws) / sum(each.best for each in draws) > 0.85
    # Without a margin, all of them leak.
    assert all(draw(seed, 32, 0.002, margin=0.0).worst > 0.02 for seed in range(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proxies", "noise", "part"), [(24, 0.001, 0.9), (32, 0.001, 0.9), (32, 0.002, 0.89), (32, 0.004, 0.75)]
)
def test_limits_are_kept_in_95_of_100_draws(proxies: int, noise: float, part: float) -> None:
    draws = [draw(seed, proxies, noise) for seed in range(100)]
    assert sum(each.worst <= 0.02 for each in draws) >= 95
    assert sum(each.gain for each in draws) / sum(each.best for each in draws) >= part
    assert abs(sum(each.gain - each.predicted for each in draws)) / 100 < 0.002
