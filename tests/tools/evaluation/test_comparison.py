from __future__ import annotations

import numpy as np
import pytest

from emma.tools.evaluation.averages import averages
from emma.tools.evaluation.comparison import (
    Items,
    benchmark_scores,
    benchmarks_of,
    change,
    compare_scores,
    estimate,
    health,
    main_metric,
)
from emma.tools.evaluation.results import Result
from emma.tools.evaluation.significance import judge
from emma.tools.evaluation.wins import field_wins

LANGUAGES = ("eng_Latn", "deu_Latn", "zho_Hans", "yor_Latn", "lua_Latn")


def answers(seed: int, better: dict[str, float]) -> dict[str, dict[str, float]]:
    """Right and wrong answers of 300 items that all languages share."""
    ease = np.random.default_rng(7).random(300)
    found = {}
    for place, name in enumerate(LANGUAGES):
        luck = np.random.default_rng([seed, place]).random(300)
        found[name] = {str(i): float(x) for i, x in enumerate(luck < ease * 0.8 + better.get(name, 0.0))}
    return found


BASE = answers(1, {})
TRAINED = answers(1, {"yor_Latn": 0.3, "zho_Hans": 0.25, "eng_Latn": -0.3})


def rows(model: str, found: dict[str, dict[str, float]]) -> list[Result]:
    table = [
        Result(model, "sib200", name, "acc", 300, sum(row.values()) / 300, 0.028, "s")
        for name, row in found.items()
    ]
    table.append(Result(model, "sib200", "yor_Latn", "label_collapse", 300, 0.9, None, "s"))
    table.append(Result(model, "sib200", "deu_Latn", "label_collapse", 300, 0.3, None, "s"))
    return [*table, Result(model, "heldout/monolingual", "deu_Latn", "bits_per_byte", 3, 1.0, 0.1, "s")]


RESULTS = [*rows("base", BASE), *rows("ours", TRAINED)]
FOUND = {"base": BASE, "ours": TRAINED}


def items_of(model: str) -> Items:
    return lambda benchmark, language, metric: FOUND[model][language] if metric == "acc" else None


def test_benchmarks_and_their_main_metric() -> None:
    assert benchmarks_of(RESULTS) == ["sib200"]
    assert main_metric("sib200", ["label_collapse", "macro_f1", "acc"]) == "acc"
    assert main_metric("sib200", ["label_collapse", "macro_f1"]) == "macro_f1"
    assert main_metric("unheard_of", ["b", "a"]) == "a"
    assert main_metric("sib200", ["label_collapse", "chance"]) is None
    assert benchmark_scores(RESULTS, "nobody", "sib200") is None


def test_change_with_and_without_items() -> None:
    for with_items in (True, False):
        scores = [
            benchmark_scores(RESULTS, model, "sib200", items=items_of(model) if with_items else None)
            for model in ("base", "ours")
        ]
        assert scores[0] is not None
        assert scores[1] is not None
        found = change(
            scores[0],
            scores[1],
            judge(compare_scores(scores[0], scores[1])),
            trained_on=frozenset({"yor_Latn", "cmn_Hans"}),
            seen=frozenset({"deu_Latn"}),
        )
        assert found is not None
        verdicts = {row.language: row.verdict for row in found.languages}
        assert verdicts == {
            "eng_Latn": "loss",
            "deu_Latn": "tie",
            "zho_Hans": "win",
            "yor_Latn": "win",
            "lua_Latn": "tie",
        }
        assert {row.test for row in found.languages} == {"McNemar" if with_items else "two errors"}
        assert found.counts == {"win": 2, "tie": 2, "loss": 0}
        assert found.english is not None
        assert found.english.difference < -0.1
        differences = [row.difference for row in found.languages if row.language != "eng_Latn"]
        assert found.average is not None
        assert found.average.value == pytest.approx(np.mean(differences))
        assert found.average.items == (300 if with_items else None)
        assert found.average.low is not None
        assert found.average.high is not None
        assert found.average.low < found.average.value < found.average.high
        groups = {(row.dimension, row.group): row for row in found.groups}
        assert groups["mix", "in the mix"].languages == 2
        assert groups["base", "seen by the base"].languages == 1
        assert groups["family", "Sino-Tibetan"].languages == 1
        assert groups["script", "Latn"].languages == 3
        assert groups["category", "unseen"].languages == 1
        assert ("category", "high") in groups
        assert found.group_counts["mix", "in the mix"] == {"win": 2, "tie": 0, "loss": 0}


def test_average_leaves_english_out_and_health_names_the_worst() -> None:
    scores = benchmark_scores(RESULTS, "base", "sib200", items=items_of("base"))
    assert scores is not None
    found = estimate(scores)
    assert found is not None
    others = [sum(BASE[name].values()) / 300 for name in LANGUAGES[1:]]
    assert found.value == pytest.approx(np.mean(others))
    assert found.languages == 4
    ((rate, mean, worst),) = health(scores)
    assert (rate.key, mean, worst) == ("label_collapse", pytest.approx(0.6), "yor_Latn")


def test_english_is_in_no_category() -> None:
    found = {(row.dimension, row.group): row for row in averages({"eng_Latn": 0.0, "deu_Latn": 1.0})}
    assert found["overall", "all"].value == 0.5
    assert found["category", "high"].value == 1.0
    assert found["overall", "English"].value == 0.0


def test_wins_across_a_field() -> None:
    field = {
        "a": {"deu_Latn": 3.0, "yor_Latn": 1.0, "eng_Latn": 5.0},
        "b": {"deu_Latn": 2.0, "yor_Latn": 4.0, "eng_Latn": 5.0},
    }
    won = field_wins(field, better="higher")
    assert won["a"]["all"] == 2
    assert won["b"]["all"] == 2
    assert won["a"]["high"] == 1
    assert won["b"]["high"] == 0
    assert won["a"]["all but English"] == 1
    assert field_wins(field, better="lower")["a"]["all"] == 2
    assert field_wins({}, better="lower") == {}
