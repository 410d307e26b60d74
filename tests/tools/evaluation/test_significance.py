from __future__ import annotations

import math

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


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(2, 8) == mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(50, 50) == 1.0
    # Beyond a float's range of the binomials: the normal tail with continuity correction agrees.
    deviate = (1300 - 1200 - 1) / math.sqrt(2500)
    assert mcnemar(1300, 1200) == pytest.approx(math.erfc(deviate / math.sqrt(2)), rel=0.01)


@pytest.mark.parametrize(
    # From the tables of Student's t, two-sided.
    ("t", "freedom", "p"),
    [(2.7764, 4, 0.05), (4.6041, 4, 0.01), (2.0860, 20, 0.05), (2.8453, 20, 0.01), (1.9659, 400, 0.05)],
)
def test_paired_t_has_the_tables_p(t: float, freedom: int, p: float) -> None:
    values = np.random.default_rng(0).normal(size=freedom + 1)
    values = (values - values.mean()) / values.std(ddof=1)
    shifted = values + t / math.sqrt(freedom + 1)
    found, error = paired_t(shifted)
    assert found == pytest.approx(p, rel=0.06)
    assert error == pytest.approx(1 / math.sqrt(freedom + 1))


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
