from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.significance import (
    Score,
    adjust,
    compare_languages,
    mcnemar,
    paired_statistics,
    paired_t,
    two_errors,
    verdict_counts,
)


def _binomial(gained: int, lost: int) -> float:
    """Twice the smaller tail of a fair coin, in whole numbers."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


@pytest.mark.parametrize(
    ("gained", "lost"), [(5, 0), (2, 8), (8, 2), (7, 8), (50, 50), (31, 60), (1300, 1200), (1200, 1500)]
)
def test_mcnemar_is_the_binomial_tail(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(_binomial(gained, lost), rel=1e-10)


def test_mcnemar_of_models_that_never_differ() -> None:
    assert mcnemar(0, 0) == 1.0


def _student(t: float, freedom: int) -> float:
    """Two-sided p of Student's t, by its finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom == 1:
        return 1 - 2 * angle / math.pi
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 1 - (2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 20, 399])
@pytest.mark.parametrize("t", [0.3, 2.0, 4.303])
@pytest.mark.parametrize("sign", [1, -1])
def test_paired_t_has_the_exact_p(t: float, freedom: int, sign: int) -> None:
    values = np.random.default_rng(0).normal(size=freedom + 1)
    values = (values - values.mean()) / values.std(ddof=1)
    found, error = paired_t(values + sign * t / math.sqrt(freedom + 1))
    assert found == pytest.approx(_student(t, freedom), rel=1e-8)
    assert error == pytest.approx(1 / math.sqrt(freedom + 1))


def test_paired_t_agrees_with_the_printed_tables() -> None:
    for t, freedom, p in ((12.706, 1, 0.05), (4.3027, 2, 0.05), (2.7764, 4, 0.05), (2.8453, 20, 0.01)):
        assert _student(t, freedom) == pytest.approx(p, rel=1e-4)
    # Three differences of mean 2 and standard deviation 1: t = 2√3 with two degrees of freedom.
    assert paired_t([1.0, 2.0, 3.0])[0] == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)


def test_too_little_to_tell() -> None:
    assert paired_t([0.4]) == (1.0, None)
    assert paired_t([0.0, 0.0, 0.0]) == (1.0, 0.0)
    assert two_errors(Score(0.1), Score(0.9)) == (1.0, None)


def test_corrections_are_the_textbooks() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert adjust(p, "holm") == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    assert adjust(p, "bh") == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.5])
    assert adjust(p, "none") == p
    assert adjust([], "bh") == []
    # A smaller p behind a larger one pulls it down (bh) or is lifted by it (holm); none is above 1.
    assert adjust([0.9, 0.91, 0.01], "bh") == pytest.approx([0.91, 0.91, 0.03])
    assert adjust([0.9, 0.91, 0.01], "holm") == [1.0, 1.0, pytest.approx(0.03)]
    # Benjamini and Hochberg 1995, section 3.1: 15 p-values, of which 4 are found at 5 %.
    published = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    assert sum(value <= 0.05 for value in adjust(published, "bh")) == 4
    assert sum(value <= 0.05 for value in adjust(published, "holm")) == 3


def test_false_findings_stay_rare_over_many_languages() -> None:
    """Without any true difference hundreds of languages give almost no clear win; uncorrected they give dozens."""
    generator = np.random.default_rng(0)
    base, trained = {}, {}
    for place in range(400):
        ease = generator.random(200)
        for scores in (base, trained):
            right = (generator.random(200) < ease).astype(float)
            scores[str(place)] = Score(right.mean(), None, {str(i): x for i, x in enumerate(right)})
    for correction, most in (("none", 40), ("bh", 3), ("holm", 3)):
        rows = compare_languages(base, trained, better="higher", correction=correction)  # type: ignore[arg-type]
        clear = 400 - verdict_counts(rows)["tie"]
        assert clear <= most
        assert correction != "none" or clear > 5
    assert {row.test for row in rows} == {"McNemar"}


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    items = {str(i): float(i % 7) for i in range(60)}
    lower = {key: value - 0.5 + 0.1 * (int(key) % 3) for key, value in items.items()}
    mean = sum(items.values()) / 60
    base = {"a": Score(mean, None, items), "b": Score(1.0, 0.1), "c": Score(1.0, None)}
    trained = {
        "a": Score(sum(lower.values()) / 60, None, lower),
        "b": Score(2.0, 0.1),
        "c": Score(9.0, None),
        "d": Score(1.0, 0.1),
    }
    for better, verdicts in (("lower", ["win", "loss", "tie"]), ("higher", ["loss", "win", "tie"])):
        rows = compare_languages(base, trained, better=better)
        assert [row.verdict for row in rows] == verdicts
        assert [row.test for row in rows] == ["paired t", "two errors", ""]


def test_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="deu_Latn: the two models were scored on different items"):
        compare_languages(
            {"deu_Latn": Score(0.5, None, {"1": 1.0, "2": 0.0})},
            {"deu_Latn": Score(0.5, None, {"1": 1.0, "3": 0.0})},
            better="higher",
        )


def test_statistics_are_resampled_over_the_same_items() -> None:
    """Of a ratio of sums: the paired error is far below that of two independent values, and matches the paired t."""
    generator = np.random.default_rng(0)
    hard = generator.normal(50, 15, 300)
    base = {str(i): [value, 1.0] for i, value in enumerate(hard)}
    trained = {str(i): [value + generator.normal(1, 3), 1.0] for i, value in enumerate(hard)}
    p, error = paired_statistics(base, trained, lambda row: float(row[0] / row[1]))
    changes = [trained[key][0] - base[key][0] for key in base]
    assert error == pytest.approx(np.std(changes, ddof=1) / math.sqrt(300), rel=0.1)
    assert math.log(p) == pytest.approx(math.log(paired_t(changes)[0]), rel=0.2)
    scores = [
        Score(float(np.mean([row[0] for row in found.values()])), 0.9, statistics=found)
        for found in (base, trained)
    ]
    for value_of, test, verdict in (
        (lambda row: float(row[0] / row[1]), "paired bootstrap", "win"),
        (None, "two errors", "tie"),
    ):
        (row,) = compare_languages({"a": scores[0]}, {"a": scores[1]}, better="higher", value_of=value_of)
        assert (row.test, row.verdict) == (test, verdict)
