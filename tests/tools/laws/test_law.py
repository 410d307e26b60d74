"""Laws: slopes, bounds, what they predict of simulated truths."""

from __future__ import annotations

import numpy as np
import pytest

from emma.tools.laws.law import Law, Repetition, fit_law
from emma.tools.laws.models import MODELS, sigmoid
from tests.tools.optimise.simulation import LEVERS, design, fitted, make_truth


@pytest.mark.parametrize("model", MODELS)
def test_slopes_are_those_of_the_values(model: str) -> None:
    random = np.random.default_rng(1)
    levers, groups = 4, 3
    base = random.dirichlet(np.full(levers, 5.0))
    parameters = MODELS[model].typical(levers) + random.normal(
        0, 0.3, (groups, len(MODELS[model].typical(levers)))
    )
    parameters[:, 0] = random.uniform(1, 4, groups)
    shares = random.dirichlet(np.full(levers, 5.0))
    found = MODELS[model].values(parameters, shares[None], base)
    for place in range(parameters.shape[1]):
        step = np.zeros_like(parameters)
        step[:, place] = 1e-6
        ends = [
            MODELS[model].values(parameters + side * step, shares[None], base).losses[0] for side in (1, -1)
        ]
        assert np.allclose(found.by_parameters[0, :, place], (ends[0] - ends[1]) / 2e-6, atol=1e-6)
    # Through repetition, too: here some levers are seen more than once.
    law = Law(
        model,
        base,
        np.arange(groups),
        parameters,
        np.zeros((groups, 1, 1)),
        Repetition(np.array([9.0, 1, 20, 3]), 15.4),
    )
    for place in range(levers):
        step = np.zeros(levers)
        step[place] = 1e-7
        ahead, behind = law.predict(np.stack([shares + step, shares - step]))
        assert np.allclose(law.gradient(shares)[:, place], (ahead - behind) / 2e-7, atol=1e-5)


def test_repeated_tokens_are_worth_less_and_less() -> None:
    epochs = np.array([0.5, 1.0, 4.0, 8.0, 100.0])
    value = Repetition(np.ones(5), 15.4).effective(epochs)
    assert np.allclose(value[:2], epochs[:2])
    assert value[2] == pytest.approx(3.7, abs=0.05) and value[3] == pytest.approx(6.6, abs=0.05)
    assert np.all(np.diff(value) > 0) and value[4] < 16.4
    assert np.array_equal(Repetition(np.ones(5), 0.0).effective(epochs), epochs)


def test_predictions_at_24_proxies_are_within_twice_the_noise() -> None:
    errors = []
    for seed in range(4):
        truth = make_truth(seed, 0.004)
        unseen = design(truth.base, 64, 10**6 + seed)
        off = fitted(truth, 24, seed).predict(unseen) - truth.law.predict(unseen)
        errors.append(np.sqrt((off**2).mean(axis=0)) / truth.noise)
    assert np.median(errors) < 1.5
    assert np.mean(np.array(errors) < 2) > 0.9


def test_transfer_beats_own_shares_only_and_does_not_explode_with_few_proxies() -> None:
    """With 16 runs of 13 shares the log-linear law is far off outside of them; `transfer` is not."""
    worse = {"log_linear": 0.0, "ridge": 0.0}
    for seed in range(3):
        truth = make_truth(seed, 0.004)
        unseen = design(truth.base, 64, 10**6 + seed, spread=1.2)
        true = truth.law.predict(unseen)
        spread = true.std(axis=0)
        off = {m: (fitted(truth, 16, seed, model=m).predict(unseen) - true) / spread for m in MODELS}
        found = {m: float(np.median(np.sqrt((each**2).mean(axis=0)))) for m, each in off.items()}
        assert found["transfer"] < 0.6
        for model in worse:
            worse[model] += found[model] / found["transfer"] / 3
    assert min(worse.values()) > 1.3


def test_parameters_keep_their_bounds_on_noise_alone() -> None:
    random = np.random.default_rng(3)
    base = np.full(5, 0.2)
    shares = random.dirichlet(np.full(5, 3.0), 20)
    losses = random.uniform(1, 2, (20, 2))
    law = fit_law("transfer", shares, losses, [0, 3], base, np.full(2, 1e-6), Repetition(np.zeros(5), 0.0))
    level, part, bend = law.parameters[:, 0], sigmoid(law.parameters[:, 1]), sigmoid(law.parameters[:, 2])
    assert np.all((part > 0) & (part < 1) & (bend > 0) & (bend < 1)) and np.all(level > 0)
    assert np.all(law.parameters[[0, 1], [3, 6]] == 0)
    assert np.all(np.isfinite(law.covariance)) and np.all(law.spread(shares) > 0.01)
    parts = law.parts()
    assert np.allclose(parts.sum(axis=1), 1) and np.all(parts > 0)


def test_errors_cover_what_the_law_misses() -> None:
    """Differences from the recipe's mix, in units of the law's own standard error, are spread like a normal's."""
    pulls = []
    for seed in range(4):
        truth = make_truth(seed, 0.003)
        law = fitted(truth, 32, seed)
        unseen = design(truth.base, 32, 10**6 + seed, spread=0.5)
        nothing = np.zeros(LEVERS)
        true, said = (each.predict(unseen) - each.predict(truth.base[None]) for each in (truth.law, law))
        pulls.append((said - true) / law.error(unseen, nothing))
    assert 0.6 < float(np.sqrt(np.mean(np.square(pulls)))) < 1.3


@pytest.mark.parametrize("model", MODELS)
def test_a_mix_that_got_nothing_of_a_lever_is_fitted_too(model: str) -> None:
    """A small mix may hold no document of a small share."""
    random = np.random.default_rng(0)
    base = np.array([0.5, 0.3, 0.15, 0.05])
    shares = base * np.exp(0.5 * random.standard_normal((24, 4)))
    shares[3, 3] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    losses = 4.0 - 0.2 * np.log(shares[:, :1] / base[0]) + 0.01 * random.standard_normal((24, 1))
    law = fit_law(model, shares, losses, [0], base, np.array([0.01]), Repetition(np.zeros(4), 0.0))
    assert np.isfinite(law.covariance).all()
    assert law.predict(shares)[:, 0] == pytest.approx(losses[:, 0], abs=0.08)
