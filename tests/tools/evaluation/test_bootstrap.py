from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emma.tools.evaluation.bootstrap import Estimate, average, average_of_items, error_of, ratio_draws


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


def coverage(trials: int, level: float, draw: Callable[[np.random.Generator, str], Estimate]) -> float:
    """Share of simulated worlds, all with the true average 0, whose interval holds it."""
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(trials):
        found = draw(generator, str(trial))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    return held / trials


@pytest.mark.parametrize(
    ("languages", "items", "of_languages", "of_items", "rest"),
    [
        (25, 60, 0.10, 0.15, 0.40),  # like a multiple-choice benchmark: most of a cell is chance
        (12, 40, 0.20, 0.20, 0.20),
        (40, 30, 0.05, 0.40, 0.30),  # items decide
        (6, 200, 0.30, 0.02, 0.40),  # few languages
        (30, 50, 0.0, 0.0, 0.5),  # nothing but noise
    ],
)
@pytest.mark.parametrize("level", [0.95, 0.80])
@pytest.mark.slow
def test_interval_of_parallel_items_covers_the_truth(
    languages: int, items: int, of_languages: float, of_items: float, rest: float, level: float
) -> None:
    def draw(generator: np.random.Generator, name: str) -> Estimate:
        table = (
            generator.normal(0, of_languages, (languages, 1))
            + generator.normal(0, of_items, (1, items))
            + generator.normal(0, rest, (languages, items))
        )
        scores = {str(i): {str(j): value for j, value in enumerate(row)} for i, row in enumerate(table)}
        found = average_of_items(scores, name, level=level)
        assert found.items == items
        return found

    # Noise alone leaves the two variances at zero half of the time, which can only widen the interval.
    slack = 0.05 if of_languages == of_items == 0 else 0.02
    assert level - 0.02 <= coverage(1000, level, draw) <= level + slack


@pytest.mark.parametrize("languages", [4, 12, 40])
@pytest.mark.slow
def test_interval_of_languages_with_their_own_items_covers_the_truth(languages: int) -> None:
    def draw(generator: np.random.Generator, name: str) -> Estimate:
        means = generator.normal(0, 0.1, languages)
        scores = {
            str(place): {f"{place}/{j}": value for j, value in enumerate(generator.normal(mean, 0.4, 30))}
            for place, mean in enumerate(means)
        }
        return average_of_items(scores, name)

    assert 0.93 <= coverage(1000, 0.95, draw) <= 0.97


def test_coverage_of_right_and_wrong_answers() -> None:
    """Accuracies: items differ in difficulty, languages in skill, answers are 0 or 1."""

    def draw(generator: np.random.Generator, name: str) -> Estimate:
        skill, ease = generator.normal(0, 0.08, (20, 1)), generator.normal(0, 0.15, (1, 50))
        right = generator.random((20, 50)) < np.clip(0.5 + skill + ease, 0, 1)
        scores = {str(i): {str(j): float(x) - 0.5 for j, x in enumerate(row)} for i, row in enumerate(right)}
        return average_of_items(scores, name)

    assert 0.93 <= coverage(1500, 0.95, draw) <= 0.97


def test_parallel_items_are_kept_together() -> None:
    """The same scores have a larger error where languages share their items and the items decide."""
    ease = np.random.default_rng(0).normal(0, 1, 40)
    together = {str(i): {str(j): value for j, value in enumerate(ease)} for i in range(30)}
    apart = {i: {f"{i}/{j}": value for j, value in row.items()} for i, row in together.items()}
    shared, own = average_of_items(together, "a"), average_of_items(apart, "a")
    assert shared.value == pytest.approx(own.value)
    assert shared.error == pytest.approx(ease.std(ddof=1) / np.sqrt(40), rel=0.05)
    assert own.error == pytest.approx(0, abs=1e-9)


def test_one_language_has_the_error_of_its_items() -> None:
    scores = np.random.default_rng(0).normal(0, 1, 50)
    found = average_of_items({"a": {str(j): value for j, value in enumerate(scores)}}, "a")
    assert found.error == pytest.approx(scores.std(ddof=1) / np.sqrt(50))
    assert average([0.3], "a").error is None
    assert average([0.3], "a", errors=[0.1]).error == 0.1


def test_languages_with_their_own_items_have_the_error_of_their_mean() -> None:
    values = np.random.default_rng(0).normal(0, 1, 30)
    assert average(values, "a").error == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_a_ratio_weighs_documents_by_their_size() -> None:
    """A book of 1 bit a byte among ninety-nine notes of 3: the corpus has 1.09 bits a byte, its documents 2.98."""
    size = np.array([2000.0, *[1.0] * 99])
    draws = ratio_draws(size * np.array([1.0, *[3.0] * 99]), size, "a")
    # A third of the resamples lack the book.
    assert np.median(draws) == pytest.approx(1.09, abs=0.05)


def test_one_document_has_no_error() -> None:
    assert error_of(ratio_draws([2.0], [1.0], "a"), 1) is None
