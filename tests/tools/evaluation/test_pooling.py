from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emma.tools.evaluation.gains import compare
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.pooling import moderated, pool, pool_groups
from tests.tools.evaluation.test_gains import scores


def coverage(languages: int, spread: float, units: int, trials: int, seed: int = 0) -> tuple[float, float]:
    """Shares of 95 % intervals that hold the truth: of the mean, and of single languages.

    Errors differ by up to a factor of three between languages, and are estimated from `units` documents.
    """
    draw = np.random.default_rng(seed)
    means, singles = 0, 0.0
    for _ in range(trials):
        true = 0.3 + spread * draw.standard_normal(languages)
        scale = np.exp(draw.uniform(-np.log(3) / 2, np.log(3) / 2, languages)) * units**0.5
        seen = true[:, None] + scale[:, None] * draw.standard_normal((languages, units))
        errors = (seen.std(axis=1, ddof=1) / units**0.5).tolist()
        pooled = pool(seen.mean(axis=1).tolist(), errors, [units] * languages)
        assert pooled is not None
        means += pooled.low <= 0.3 <= pooled.high
        singles += float(np.mean((np.array(pooled.lows) <= true) & (true <= np.array(pooled.highs))))
    return means / trials, singles / trials


@pytest.mark.parametrize(
    ("languages", "trials"), [(3, 300), (10, 100), pytest.param(200, 200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_intervals_hold_the_truth_as_often_as_they_say(languages: int, trials: int, spread: float) -> None:
    mean, single = coverage(languages, spread, 12, trials)
    # 95 %, give or take three standard errors of a share of so many trials, beyond the stated 93 to 97 %.
    slack = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert 0.93 - slack <= mean <= 0.97 + slack
    assert single >= 0.93 - slack


def test_weights_follow_errors_and_spread() -> None:
    """By hand: without spread, the mean weighted by 1/error²; with much, the plain mean."""
    near = pool([1.0, 1.02, 1.01], [0.1, 0.2, 0.2], [10**6] * 3)
    assert near is not None and near.spread == 0
    weights = np.array([100, 25, 25])
    assert near.mean == pytest.approx(float(np.average([1.0, 1.02, 1.01], weights=weights)), abs=2e-4)
    # Hartung and Knapp: Student's t with two degrees of freedom, times the root of the weighted squares over 2 · Σ weights.
    squares = float(weights @ (np.array([1.0, 1.02, 1.01]) - near.mean) ** 2)
    assert near.high - near.mean == pytest.approx(4.302653 * (squares / 2 / 150) ** 0.5, rel=2e-2)
    far = pool([0.0, 100.0, 200.0], [0.1, 0.2, 0.2], [1000] * 3)
    assert far is not None and far.mean == pytest.approx(100, abs=1e-3)
    # Student's t with two degrees of freedom, of the plain mean.
    assert far.high - far.mean == pytest.approx(4.302653 * 100 / 3**0.5, rel=1e-4)
    assert far.spread == pytest.approx(100, rel=1e-4)
    assert far.values == pytest.approx((0, 100, 200), abs=0.05)
    # Nothing is drawn together, so a language's interval is its own: 1.96 errors to each side.
    assert far.values[0] - far.lows[0] == pytest.approx(1.96 * 0.1, rel=0.02)
    assert far.highs[0] - far.values[0] == pytest.approx(1.96 * 0.1, rel=0.02)


def test_a_language_is_drawn_towards_the_others_the_more_the_less_is_known() -> None:
    pooled = pool([0.0, 0.1, -0.1, 0.05, -0.05, 2.0], [0.1, 0.1, 0.1, 0.1, 0.1, 1.5], [50] * 5 + [50])
    assert pooled is not None
    assert 0 < pooled.values[5] < 1
    assert pooled.highs[5] - pooled.lows[5] < 4 * 1.5
    assert abs(pooled.values[1]) < 0.1


def test_errors_of_few_documents_borrow_from_each_other() -> None:
    draw = np.random.default_rng(1)
    noisy = (draw.chisquare(1, 500) ** 0.5 / 2**0.5).tolist()
    found = moderated(noisy, [2] * 500)
    assert found is not None
    # Every unit has variance one, so the error of two is 1/√2.
    assert found[0] == pytest.approx(np.full(500, 0.5**0.5), rel=0.15)
    single = moderated([0.5, 0.5, None], [4, 4, 1])
    assert single is not None and single[0][2] == pytest.approx(1.0)
    assert moderated([None, None], [1, 1]) is None


def test_too_few_languages_and_equal_models() -> None:
    assert pool([1.0, 2.0], [0.1, 0.1], [9, 9]) is None
    assert pool([1.0, 2.0, 3.0], [None] * 3, [1] * 3) is None
    same = pool([0.0] * 4, [0.0] * 4, [9] * 4)
    assert same is not None
    assert (same.mean, same.spread) == (0, 0)
    assert same.high == pytest.approx(0, abs=1e-9)
    assert np.isfinite(same.values).all()


def test_gains_hold_the_hierarchy() -> None:
    names = ["deu_Latn", "nld_Latn", "swe_Latn", "rus_Cyrl", "ukr_Cyrl", "bul_Cyrl", "yor_Latn", "eng_Latn"]
    before = scores(dict.fromkeys(names, 3.0), documents=4)
    after = scores({name: 2.0 + 0.1 * place for place, name in enumerate(names)}, documents=4)
    # Documents that do not all change alike, or there is no error.
    for key, row in after.items():
        after[key] = replace(
            row,
            documents=tuple(
                replace(document, nll=document.nll + (-1) ** place)
                for place, document in enumerate(row.documents)
            ),
        )
    facts = LanguageFacts({("monolingual", name): "high" for name in names}, ("high",))
    gains = compare("a", "b", before, after, facts)
    groups = {(row.dimension, row.group): row for row in gains.pooled}
    assert groups["all", "all but English"].languages == groups["category", "high"].languages == 7
    assert groups["script", "Cyrl"].languages == 3
    assert groups["family", "Indo-European"].languages == 6
    assert ("family", "Atlantic-Congo") not in groups
    assert groups["script", "Cyrl"].mean == pytest.approx(-0.6, abs=0.05)
    by_name = {row.language: row for row in gains.languages}
    assert by_name["eng_Latn"].pooled is None
    row = by_name["deu_Latn"]
    assert row.pooled is not None and row.difference < row.pooled < -0.5
    assert row.pooled_low is not None and row.pooled_low < row.pooled


def test_a_large_category_draws_its_own_languages() -> None:
    """Ten of a category go to its mean, and not to that of all."""

    class Row:
        def __init__(self, language: str, difference: float) -> None:
            self.language, self.difference, self.error, self.n = language, difference, 0.3, 20

    rows = [Row(f"a{i}", 5 + 0.01 * i) for i in range(10)] + [Row(f"b{i}", -5.0) for i in range(10)]
    names = [row.language for row in rows]
    members = {("all", "all"): names, ("category", "a"): names[:10], ("category", "b"): names[10:]}
    _, found = pool_groups("monolingual", rows, members)
    alone, wide = found["a0"], pool_groups("monolingual", rows, {("all", "all"): names})[1]["a0"]
    assert alone[2] - alone[1] < 0.6 * (wide[2] - wide[1])
