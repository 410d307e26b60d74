from __future__ import annotations

import numpy as np
import pytest

from tools.evaluation.bootstrap import error_of, mean_over_languages, ratio_draws


def test_error_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=500)
    draws = ratio_draws(values, np.ones(500), "a")
    assert draws.mean() == pytest.approx(values.mean(), abs=0.02)
    assert error_of(draws, 500) == pytest.approx(values.std(ddof=1) / np.sqrt(500), rel=0.1)


def test_equal_names_resample_equal_documents() -> None:
    values = np.random.default_rng(0).normal(size=50)
    one, other = ratio_draws(values, np.ones(50), "a"), ratio_draws(values + 1, np.ones(50), "a")
    np.testing.assert_allclose(other - one, 1)
    assert not np.array_equal(one, ratio_draws(values, np.ones(50), "b"))


def test_interval_of_an_average_covers_the_truth() -> None:
    """Languages with means of their own, documents within: two standard errors cover about 95 % of the time."""
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        means = generator.normal(0, 1, size=25)
        draws = []
        for language, mean in enumerate(means):
            documents = generator.normal(mean, 2, size=30)
            draws.append(ratio_draws(documents, np.ones(30), f"{trial}/{language}", draws=200))
        resampled = mean_over_languages(np.stack(draws), str(trial))
        low, high = np.quantile(resampled, [0.025, 0.975])
        covered += bool(low <= 0 <= high)
    assert 0.90 <= covered / 100 <= 0.99


def test_one_document_has_no_error() -> None:
    assert error_of(ratio_draws([2.0], [1.0], "a"), 1) is None
