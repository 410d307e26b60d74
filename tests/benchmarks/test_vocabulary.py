"""The arithmetic of the comparison of vocabularies: budgets, groups of languages, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.vocabulary import Arm, arms_of, keep_settings, language_groups, steps_of, table
from emma.base.errors import CheckFailedError, UserError


def test_every_arm_has_no_extension_of_its_seed_to_compare_with() -> None:
    arms = arms_of([8, 32], ["subword", "random"], ["bytes", "flops"], 3)
    assert len(arms) == len({arm.name for arm in arms}) == 3 + 2 * 2 * 2 * 3
    assert {Arm(0, "", "bytes", arm.seed) for arm in arms} == {arm for arm in arms if not arm.tokens}
    # A size of the same arm is another arm.
    assert arms_of([8], ["subword"], ["bytes"], 1)[-1].name == "subword-8-bytes-seed1"


def test_equal_bytes_read_the_text_equally_often_and_equal_flops_cost_the_same() -> None:
    none = (10_000, 100.0)
    assert steps_of(*none, none, "bytes", 100, 1.5) == 150
    # The extension cuts the same text into 8,000 tokens, each of which costs a quarter more.
    assert steps_of(8_000, 125.0, none, "bytes", 100, 1.5) == 120
    steps = steps_of(8_000, 125.0, none, "flops", 100, 1.5)
    assert steps * 125.0 == 150 * 100.0
    # Never more than the budget: the last step must fit.
    assert steps_of(8_000, 125.1, none, "flops", 100, 1.5) == 119
    with pytest.raises(UserError, match="make steps smaller"):
        steps_of(*none, none, "bytes", 100_000, 1.0)


def test_languages_stand_in_one_group() -> None:
    sizes = {"eng_Latn": 900, "a": 50, "b": 70, "c": 1, "d": 50, "e": 2}
    groups = language_groups(sizes, ["eng_Latn", "deu_Latn"])
    assert groups == {"seen": ["eng_Latn"], "large": ["b", "a", "d"], "small": ["e", "c"]}
    assert list(language_groups({"a": 1, "b": 2}, [])) == ["large", "small"]


def test_differences_are_from_the_same_seed() -> None:
    scores = {
        Arm(0, "", "bytes", 1): {"a": 2.0, "b": 4.0},
        Arm(0, "", "bytes", 2): {"a": 3.0, "b": 5.0},
        Arm(8, "mean", "flops", 1): {"a": 1.5, "b": 3.5},
        Arm(8, "mean", "flops", 2): {"a": 2.9, "b": 4.9},
    }
    none, other = table(scores, {"all": ["a", "b"], "b": ["b"]})
    assert (none["arm"], none["seeds"], none["all"]["mean"]) == ("none", 2, 3.5)
    assert none["all"]["difference"] == 0
    assert other["arm"] == "mean-8-flops"
    assert other["all"]["difference"] == pytest.approx(-0.3)
    assert other["all"]["range"] == pytest.approx([-0.5, -0.1])
    assert other["b"]["mean"] == pytest.approx(4.2)
    assert none["all"]["deviation"] == pytest.approx(0.5**0.5)
    with pytest.raises(CheckFailedError, match="different languages"):
        table({**scores, Arm(8, "mean", "flops", 2): {"a": 1.0}}, {"a": ["a"]})


def test_arms_of_two_settings_do_not_meet(tmp_path: Path) -> None:
    keep_settings(tmp_path, {"epochs": 1.0, "limit": None})
    keep_settings(tmp_path, {"epochs": 1.0, "limit": None})
    with pytest.raises(UserError, match=r"another epochs \(1.0, now 0.5\)"):
        keep_settings(tmp_path, {"epochs": 0.5, "limit": None})
