from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from emma.base.errors import UserError
from emma.tools.evaluation import item_response
from emma.tools.evaluation.item_response import ItemModel, abilities, check_subset, choose, fit, predict


def simulated(
    rows: int, items: int, guessing: float = 0.0, seed: int = 0
) -> tuple[ItemModel, NDArray[np.float64], NDArray[np.float64]]:
    """True items, true abilities, and answers drawn from them."""
    draw = np.random.default_rng(seed)
    model = ItemModel(np.exp(draw.normal(0, 0.35, items)), draw.normal(0, 1.2, items), guessing)
    able = draw.standard_normal(rows)
    answers = (draw.random((rows, items)) < model.right(able)).astype(np.float64)
    return model, able, answers


def test_fit_finds_items_and_abilities_with_their_intervals() -> None:
    model, able, answers = simulated(120, 200)
    found = fit(answers)
    assert np.corrcoef(found.difficulty, model.difficulty)[0, 1] > 0.95
    assert np.corrcoef(np.log(found.discrimination), np.log(model.discrimination))[0, 1] > 0.6
    rows = abilities(found, answers)
    assert np.corrcoef([row.value for row in rows], able)[0, 1] > 0.97
    held = np.mean([row.low <= true <= row.high for row, true in zip(rows, able, strict=True)])
    assert held >= 0.88
    assert all(row.expected_low <= row.expected <= row.expected_high for row in rows)
    # Over the languages that were fitted, expected shares of right answers are the shares that were seen.
    assert np.mean([row.expected for row in rows]) == pytest.approx(answers.mean(), abs=0.01)


def test_an_interval_is_the_middle_of_the_posterior() -> None:
    """By integration on a fine grid: 2.5 % of it lie below, 2.5 % above."""
    model, _, answers = simulated(4, 30, guessing=0.25)
    grid = np.linspace(-6, 6, 6001)
    for row, given in zip(abilities(model, answers), answers, strict=True):
        right = model.right(grid)
        chance = np.where(given == 1, right, 1 - right).prod(axis=1) * np.exp(-(grid**2) / 2)
        below = np.cumsum(chance) / chance.sum()
        assert np.interp([row.low, row.high], grid, below) == pytest.approx([0.025, 0.975], abs=1e-3)
        assert row.value == pytest.approx(float(grid @ chance / chance.sum()), abs=1e-3)


def test_many_items_tell_as_much_as_they_know() -> None:
    """Neither abilities nor predictions are rounded to the points at which posteriors are computed."""
    model, able, answers = simulated(200, 3000)
    rows = abilities(model, answers)
    error = 1 / np.sqrt(model.information(able).sum(axis=1) + 1)
    assert error.mean() < 0.06
    width = np.array([row.high - row.low for row in rows])
    assert np.mean(width / (2 * 1.96 * error)) == pytest.approx(1, abs=0.05)
    away = np.array([row.value for row in rows]) - able
    assert np.sqrt(np.mean((away / error) ** 2)) == pytest.approx(1, abs=0.15)
    held = np.mean([row.low <= true <= row.high for row, true in zip(rows, able, strict=True)])
    assert 0.9 <= held <= 0.99
    predicted, errors = predict(model, answers, choose(model, 1500))
    z = (predicted - answers.mean(axis=1)) / errors
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.15)


def test_guessing_is_no_ability() -> None:
    """With four choices, a language at chance is far below one at 60 %."""
    _, _, answers = simulated(60, 200, guessing=0.25)
    draw = np.random.default_rng(5)
    answers[0] = draw.random(200) < 0.25
    rows = abilities(fit(answers, 0.25), answers)
    assert rows[0].value == min(row.value for row in rows)
    assert rows[0].expected_low >= 0.25


def test_a_tenth_of_the_items_gives_the_full_score_within_its_interval() -> None:
    model, _, answers = simulated(60, 300, guessing=0.25)
    check = check_subset(answers, [f"l{row}" for row in range(60)], 0.1, 0.25)
    assert (check.items, check.of, check.languages) == (30, 300, 60)
    assert check.error < 0.8 * check.random_error
    assert check.coverage >= 0.88
    assert check.half_width < 0.12
    # Of true items, the model's own interval is right in languages that nobody saw.
    fresh = simulated(400, 400, guessing=0.25, seed=0)[0]
    able = np.random.default_rng(9).standard_normal(400)
    seen = (np.random.default_rng(8).random((400, 400)) < fresh.right(able)).astype(np.float64)
    predicted, errors = predict(fresh, seen, choose(fresh, 40))
    assert 0.93 <= np.mean(np.abs(predicted - seen.mean(axis=1)) <= 1.96 * errors) <= 0.98
    assert model.guessing == 0.25


def test_a_language_takes_no_part_in_its_own_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its answers under this model nor by those under another."""
    _, _, answers = simulated(62, 40)
    names = [f"l{row % 31}" for row in range(62)]
    fitted: list[NDArray[np.float64]] = []

    def spy(table: NDArray[np.float64], guessing: float = 0.0) -> ItemModel:
        fitted.append(table)
        return fit(table, guessing)

    monkeypatch.setattr(item_response, "fit", spy)
    check_subset(answers, names)
    left_out = []
    for table in fitted:
        known = {row.tobytes() for row in table}
        there = {name for name, row in zip(names, answers, strict=True) if row.tobytes() in known}
        left_out += sorted(set(names) - there)
    assert sorted(left_out) == sorted(set(names))


def test_intervals_are_widened_where_items_depend_on_each_other() -> None:
    """Five questions about each passage that are right or wrong together tell less than the model believes."""
    _, _, passages = simulated(60, 60)
    check = check_subset(np.repeat(passages, 5, axis=1), [f"l{row}" for row in range(60)])
    assert check.coverage < 0.9
    assert check.widen > 1.2


def test_all_items_are_the_full_score() -> None:
    _, _, answers = simulated(20, 30)
    predicted, errors = predict(fit(answers), answers, np.arange(30))
    assert predicted == pytest.approx(answers.mean(axis=1))
    assert errors == pytest.approx(np.zeros(20), abs=1e-6)


def test_chosen_items_are_informative_and_suit_the_languages() -> None:
    items = ItemModel(np.array([2.0, 2.0, 0.2, 2.0]), np.array([0.0, 3.0, 0.0, -3.0]), 0.0)
    assert choose(items, 1).tolist() == [0]
    assert choose(items, 1, np.array([2.9, 3.1])).tolist() == [1]
    assert 2 not in choose(items, 3).tolist()
    # Information by hand: a² p (1 − p) without guessing.
    assert items.information(np.array([0.0]))[0, 0] == pytest.approx(4 * 0.25)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (np.full((20, 5), 0.5), "right .1. or wrong .0."),
        (np.ones((4, 5)), "4 rows of answers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(answers: NDArray[np.float64], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(answers)


def test_gaps_are_left_out() -> None:
    _, able, answers = simulated(60, 120)
    answers[:30, :60] = np.nan
    rows = abilities(fit(answers), answers)
    assert np.corrcoef([row.value for row in rows], able)[0, 1] > 0.93
    assert np.mean([row.high - row.low for row in rows[:30]]) > np.mean(
        [row.high - row.low for row in rows[30:]]
    )
    with pytest.raises(UserError, match="not asked in every language"):
        check_subset(answers, [str(row) for row in range(60)])
