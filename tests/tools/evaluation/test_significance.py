from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, skew, ttest_1samp
from scipy.stats import t as student

from benchmarks.verdicts import COUNTS, LOPSIDED, NULLS, false_verdicts, page, power
from emma.base.errors import UserError
from emma.tools.evaluation.comparison import verdict_counts
from emma.tools.evaluation.measures import metric
from emma.tools.evaluation.significance import (
    LEAST,
    LEVEL,
    Score,
    Verdict,
    compare_languages,
    influences,
    judge,
    paired_test,
    tally,
    two_errors,
    units_p,
)


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (2, 8), (8, 2), (7, 8), (31, 60), (1300, 1200)])
def test_right_and_wrong_answers_are_mcnemars_test(gained: int, lost: int) -> None:
    changes = [1.0] * gained + [-1.0] * lost + [0.0] * 20
    assert units_p(changes) == (pytest.approx(binomtest(gained, gained + lost).pvalue, rel=1e-10), "McNemar")


@pytest.mark.parametrize(("units", "zeros"), [(10, 0), (12, 0), (14, 0), (9, 30)])
def test_few_differences_are_enumerated_as_scipy_does(units: int, zeros: int) -> None:
    draw = np.random.default_rng(units)
    for shift in (0.0, 1.5):
        values = draw.standard_t(2, units) + shift
        given = np.concatenate([values, np.zeros(zeros)])
        known = permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        p, name = units_p(given)
        assert name == "sign flips" and p is not None
        # More than the exact p, because five values that were not drawn might have been far away.
        assert p >= min(1.0, known.pvalue * (1 + 5 / units)) - 1e-12
    half = draw.standard_t(2, units // 2)
    even = np.concatenate([1.0 + half, 1.0 - half, np.ones(units % 2)])
    known = permutation_test((even,), np.mean, permutation_type="samples", n_resamples=np.inf)
    # Without skewness the other bar is Student's t.
    bar = max(known.pvalue, ttest_1samp(even, 0).pvalue)
    p, _ = units_p([*even, *[0.0] * zeros])
    assert p == pytest.approx(min(1.0, bar * (1 + 10 / units)), rel=1e-9)


def test_many_differences_are_students_t() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 400)
    mirrored = np.concatenate(
        [values, 2 * values.mean() - values]
    )  # no skewness, so the second bar is the first
    p, name = units_p(mirrored)
    assert name == "t"
    assert p == pytest.approx(ttest_1samp(mirrored, 0).pvalue * (1 + 10 / 800), rel=1e-6)


def test_skewed_differences_have_to_pass_halls_test() -> None:
    """Hall 1992, equation 2.4: g(r) = r + γ r²/3 + γ² r³/27 + γ/6n, with more skewness γ than the sample shows."""
    values = 1.8 - np.exp(np.linspace(-2, 1.2, 40))
    count, ratio = len(values), values.mean() / values.std(ddof=1)
    lean = skew(values) * (1 + 10 / count)
    bent = ratio + lean * ratio**2 / 3 + lean**2 * ratio**3 / 27 + lean / (6 * count)
    expected = 2 * student.sf(abs(bent) * count**0.5, count - 1)
    assert expected > 3 * ttest_1samp(values, 0).pvalue
    assert units_p(values)[0] == pytest.approx(expected * (1 + 10 / count), rel=1e-9)


def test_a_large_effect_is_clear_although_one_unit_shows_less_of_it() -> None:
    """Hall's transformation alone would make p of this 0.2, and flat in the effect."""
    values = [1.2, 0.8, 1.1, 0.9, 1.3, 0.7, 1.4, 0.6, 1.0, 0.95, 0.1]
    assert units_p(values)[0] < 0.04
    assert units_p([value + 1 for value in values])[0] < units_p(values)[0]


@pytest.mark.parametrize("units", [12, 40])
def test_units_without_a_difference_tell_nothing(units: int) -> None:
    """Nor do they hide the skewness of the others, or stand in for them."""
    values = np.random.default_rng(units).exponential(1.0, units) - 0.4
    alone = units_p(values)
    assert units_p([*values, *[0.0] * 90]) == (pytest.approx(alone[0], rel=1e-9), alone[1])


def test_sums_that_are_equal_count_as_equal() -> None:
    # 0.1 + 0.2 and 0.3 differ in floating point: of 2^13 patterns, those that tie with what was seen are as extreme.
    values = [0.1, 0.2, -0.3, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3]
    whole = [round(10 * value) for value in values]
    sums = [0]
    for value in whole:
        sums = [total + sign * value for total in sums for sign in (1, -1)]
    exact = sum(abs(total) >= abs(sum(whole)) for total in sums) / len(sums)
    assert units_p(values)[0] >= exact - 1e-15
    assert units_p(values)[0] == pytest.approx(units_p([10 * value for value in values])[0], rel=1e-9)


def test_too_little_to_tell() -> None:
    for count in range(1, LEAST):
        assert units_p([5.0] * count) == (None, "too few")
    assert units_p([5.0] * LEAST) == (2 * 0.5**LEAST, "McNemar")
    assert units_p([0.0] * 50) == (1.0, "McNemar")
    assert two_errors(Score(0.1), Score(0.9)) == (None, None, "no errors")
    # All answers alike have no error; that is no certainty.
    assert two_errors(Score(0.0, 0.0, n=50), Score(1.0, 0.0, n=50))[0] is None
    assert two_errors(Score(0.5, 0.1, n=20), Score(0.9, 0.1, n=900))[::2] == (None, "too few")


@pytest.mark.parametrize("kind", [*NULLS, *LOPSIDED, "errors only"])
def test_clear_verdicts_without_a_difference_are_rare_at_any_n(kind: str) -> None:
    """At most 6 % of 2,000, for every n: exact where there are few, and nothing below the least."""
    counts = (9, 30, 100, 1000) if kind == "errors only" else COUNTS
    rates = {units: false_verdicts(kind, units) for units in counts}
    assert all(rates[units] == 0 for units in counts if units < LEAST)
    assert max(rates.values()) <= 0.06, rates
    assert max(rates.values()) > 0.01, "a test that never finds anything would pass too"


def test_verdicts_on_corpus_scores_without_a_difference_are_rare() -> None:
    assert false_verdicts("corpus score", 29, 20) == 0
    # However large the difference: of few items, what each contributes is not known well enough.
    for units, test in ((29, "too few"), (30, "t")):
        scores = [
            Score(0.0, statistics={str(i): [right, 10.0 + i % 3] for i in range(units)}, n=units)
            for right in (1.0, 9.0)
        ]
        (row,) = compare_languages(
            {"a": scores[0]}, {"a": scores[1]}, better="higher", value_of=lambda row: float(row[0] / row[1])
        )
        assert (row.test, row.p is None) == (test, test == "too few")
    assert 0 < false_verdicts("corpus score", 30, 300) <= 0.06


def test_a_page_of_6552_comparisons_keeps_its_level() -> None:
    found = [page(seed, effect=0.2) for seed in range(4)]
    assert np.mean([wrong / clear for clear, wrong, _ in found]) <= LEVEL
    assert all(clear > 300 for clear, _, _ in found)
    assert sum(page(seed, share=0.0)[0] > 0 for seed in range(4)) <= 1


def test_power_grows_with_the_items_and_the_difference() -> None:
    assert power(204, 20, "right or wrong") > 0.95 > power(204, 5, "right or wrong")
    assert power(204, 10, "right or wrong", tests=100) < power(204, 10, "right or wrong")
    assert power(10, 2.0, "likelihoods") > 0.85


def _row(p: float | None, difference: float = 1.0) -> Verdict:
    return Verdict("a", 0.0, difference, difference, None, p, "t", 50, "higher")


def test_verdicts_are_controlled_together() -> None:
    # Benjamini and Hochberg 1995, section 3.1: 15 p-values, of which 4 are found at 5 %.
    published = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    rows = [_row(p) for p in published]
    assert [row.verdict for row in judge(rows, level=0.05)] == ["win"] * 4 + ["tie"] * 11
    assert sum(row.verdict == "win" for row in judge(rows, method="by", level=0.05)) == 3
    # Comparisons without a test neither count nor get a verdict.
    mixed = judge([*rows, *[_row(None)] * 500], level=0.05)
    assert [row.verdict for row in mixed[:15]] == ["win"] * 4 + ["tie"] * 11
    assert all((row.adjusted, row.verdict) == (None, "tie") for row in mixed[15:])
    counts = tally(mixed, 0.05)
    assert (counts.comparisons, counts.tested, counts.clear, counts.wrong) == (515, 15, 4, 0.2)
    assert judge([]) == []
    assert tally([_row(None)]).sentence.endswith("nothing is concluded.")


def test_a_verdict_depends_on_what_else_the_page_compares() -> None:
    alone = judge([_row(0.01)])
    assert alone[0].verdict == "win"
    crowd = judge([_row(0.01), *[_row(0.5)] * 99])
    assert crowd[0].verdict == "tie" and crowd[0].adjusted == pytest.approx(0.5)


def test_false_findings_stay_rare_over_many_languages() -> None:
    draw = np.random.default_rng(0)
    base, trained = {}, {}
    for place in range(400):
        ease = draw.random(200)
        for scores in (base, trained):
            right = (draw.random(200) < ease).astype(float)
            scores[str(place)] = Score(right.mean(), None, {str(i): x for i, x in enumerate(right)})
    rows = compare_languages(base, trained, better="higher")
    assert sum(row.p < 0.05 for row in rows if row.p is not None) > 5
    assert 400 - verdict_counts(judge(rows))["tie"] <= 3
    assert {row.test for row in rows} == {"McNemar"}


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    items = {str(i): float(i % 7) for i in range(60)}
    lower = {key: value - 0.5 + 0.1 * (int(key) % 3) for key, value in items.items()}
    mean = sum(items.values()) / 60
    base = {"a": Score(mean, None, items, n=60), "b": Score(1.0, 0.1, n=60), "c": Score(1.0, None, n=60)}
    trained = {
        "a": Score(sum(lower.values()) / 60, None, lower, n=60),
        "b": Score(2.0, 0.1, n=60),
        "c": Score(9.0, None, n=60),
        "d": Score(1.0, 0.1, n=60),
    }
    for better, verdicts in (("lower", ["win", "loss", "tie"]), ("higher", ["loss", "win", "tie"])):
        rows = judge(compare_languages(base, trained, better=better))
        assert [row.verdict for row in rows] == verdicts
        assert [row.test for row in rows] == ["t", "two errors", "no errors"]


def test_metrics_know_their_direction() -> None:
    assert [metric(key).sign for key in ("bits_per_byte", "off_target_rate", "accuracy", "no_such_metric")] == [
        -1, -1, 1, 1
    ]  # fmt: skip


def test_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="deu_Latn: the two models were scored on different items"):
        compare_languages(
            {"deu_Latn": Score(0.5, None, {"1": 1.0, "2": 0.0})},
            {"deu_Latn": Score(0.5, None, {"1": 1.0, "3": 0.0})},
            better="higher",
        )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(broken: float) -> None:
    fine = {str(i): float(i % 3) for i in range(20)}
    with pytest.raises(UserError, match="deu_Latn: the score of item 7 is not a finite number"):
        compare_languages(
            {"deu_Latn": Score(0.5, None, fine)},
            {"deu_Latn": Score(0.5, None, {**fine, "7": broken})},
            better="higher",
        )
    rows = {item: [value, 1.0] for item, value in fine.items()}
    with pytest.raises(UserError, match="deu_Latn: the score of item 7"):
        compare_languages(
            {"deu_Latn": Score(0.5, statistics={**rows, "7": [1.0, broken]})},
            {"deu_Latn": Score(0.5, statistics=rows)},
            better="higher",
            value_of=lambda row: float(row[0] / row[1]),
        )


def test_items_are_paired_by_name_in_any_order() -> None:
    base = {str(i): float(i % 7) for i in range(40)}
    trained = {item: value + 0.5 + 0.1 * (int(item) % 3) for item, value in base.items()}
    turned = dict(reversed(trained.items()))
    rows = [
        compare_languages({"a": Score(3.0, None, base)}, {"a": Score(3.6, None, found)}, better="higher")
        for found in (trained, turned)
    ]
    assert rows[0] == rows[1] and rows[0][0].error is not None and rows[0][0].error < 0.05


def test_items_of_a_passage_are_one_unit() -> None:
    """Forty answers that were all gained in eight passages are eight units, not forty."""
    base = Score(0.0, None, {str(i): 0.0 for i in range(80)})
    trained = Score(0.5, None, {str(i): float(i < 40) for i in range(80)})
    passages = {str(i): f"passage {i // 5}" for i in range(80)}
    (free,) = compare_languages({"a": base}, {"a": trained}, better="higher")
    (tied,) = compare_languages({"a": replace(base, clusters=passages)}, {"a": trained}, better="higher")
    assert (free.units, tied.units) == (80, 16)
    assert free.p == pytest.approx(2 * 0.5**40)
    assert tied.p == pytest.approx(2 * 0.5**8)
    assert tied.error is not None and free.error is not None and tied.error > 2 * free.error
    # An item without a passage stands by itself.
    loose = {key: name for key, name in passages.items() if int(key) < 40}
    (some,) = compare_languages({"a": replace(base, clusters=loose)}, {"a": trained}, better="higher")
    assert some.units == 8 + 40


def test_corpus_scores_are_tested_by_their_items_influence() -> None:
    """Of a ratio with equal sizes the influences are the differences, and the test is that of a mean."""
    draw = np.random.default_rng(0)
    hard = draw.normal(50, 15, 300)
    base = {str(i): [value, 1.0] for i, value in enumerate(hard)}
    trained = {str(i): [value + draw.normal(1, 3), 1.0] for i, value in enumerate(hard)}
    changes = np.array([trained[key][0] - base[key][0] for key in base])
    parts = influences(
        np.array(list(base.values())), np.array(list(trained.values())), lambda row: float(row[0] / row[1])
    )
    assert parts == pytest.approx(changes, abs=1e-8)
    scores = [
        Score(float(np.mean([row[0] for row in found.values()])), 0.9, statistics=found, n=300)
        for found in (base, trained)
    ]
    for value_of, test, verdict in (
        (lambda row: float(row[0] / row[1]), "t", "win"),
        (None, "two errors", "tie"),
    ):
        (row,) = judge(
            compare_languages({"a": scores[0]}, {"a": scores[1]}, better="higher", value_of=value_of)
        )
        assert (row.test, row.verdict) == (test, verdict)
    assert row.error == pytest.approx(math.hypot(0.9, 0.9))


def test_p_does_not_depend_on_the_unit() -> None:
    table = np.random.default_rng(1).normal(0.2, 1, (40, 12))
    for factor in (1e-300, 1e-9, 1e12, 1e307):
        assert paired_test(table * factor)[0] == pytest.approx(paired_test(table)[0], rel=1e-6)
