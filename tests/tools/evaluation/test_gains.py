from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.gains import compare, gains_of
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.evaluation.likelihood import DocumentScore
from emma.tools.evaluation.significance import LEVEL


def scores(
    values: dict[str, float], text: str = "t", documents: int = 12
) -> dict[tuple[str, str], LanguageScores]:
    """For every language, twelve documents of 10 bytes with about the given bits per byte."""
    return {
        ("monolingual", language): LanguageScores(
            "monolingual",
            language,
            "signature",
            "model",
            text,
            tuple(DocumentScore(str(i), 10, 5, 10 * bits * math.log(2) + i / 100) for i in range(documents)),
        )
        for language, bits in values.items()
    }


FACTS = LanguageFacts(
    {
        ("monolingual", "deu_Latn"): "high",
        ("monolingual", "yor_Latn"): "low",
        ("monolingual", "eng_Latn"): "high",
    },
    ("high", "low"),
    trained=frozenset({("monolingual", "deu_Latn"), ("monolingual", "eng_Latn")}),
    seen=frozenset({"eng_Latn"}),
)


def test_groups_average_languages_and_keep_english_apart() -> None:
    gains = compare(
        "base",
        "trained",
        scores({"eng_Latn": 1.0, "deu_Latn": 2.0, "yor_Latn": 4.0, "zul_Latn": 3.0}),
        scores({"eng_Latn": 1.2, "deu_Latn": 1.5, "yor_Latn": 3.0, "zul_Latn": 3.3}),
        FACTS,
    )
    groups = {group.group: group for group in gains.groups}
    assert groups["all but English"].difference == pytest.approx((-0.5 - 1 + 0.3) / 3)
    assert (groups["all but English"].lower, groups["all but English"].languages) == (2, 3)
    assert (groups["all but English"].wins, groups["all but English"].losses) == (2, 1)
    assert groups["high"].difference == pytest.approx(-0.5)
    assert groups["low"].difference == pytest.approx(-1.0)
    assert groups["no category"].difference == pytest.approx(0.3)
    assert groups["English"].difference == pytest.approx(0.2)
    assert "seen by the base" not in groups
    assert groups["unseen by the base"].languages == 3
    assert groups["in the mix"].languages == 1
    assert groups["not in the mix"].languages == 2
    assert {row.language: row.verdict for row in gains.languages} == {
        "deu_Latn": "win",
        "eng_Latn": "loss",
        "yor_Latn": "win",
        "zul_Latn": "loss",
    }


def test_equal_scores_are_a_tie() -> None:
    gains = compare("base", "trained", scores({"deu_Latn": 2.0}), scores({"deu_Latn": 2.0}), FACTS)
    assert gains.languages[0].verdict == "tie"
    assert gains.groups[0].wins == gains.groups[0].losses == 0


def test_other_documents_are_refused() -> None:
    with pytest.raises(UserError, match="different documents"):
        compare("a", "b", scores({"deu_Latn": 1.0}), scores({"deu_Latn": 1.0}, text="other"), FACTS)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="no language in common"):
        compare("a", "b", scores({"deu_Latn": 1.0}), scores({"yor_Latn": 1.0}), FACTS)


def test_other_text_is_one_group_per_kind() -> None:
    def of_code(values: dict[str, float]) -> dict[tuple[str, str], LanguageScores]:
        return {("code", name): replace(row, kind="code") for (_, name), row in scores(values).items()}

    gains = compare("a", "b", of_code({"python": 2.0, "go": 1.0}), of_code({"python": 1.0, "go": 1.5}), FACTS)
    (group,) = gains.groups
    assert (group.kind, group.group, group.languages) == ("code", "all", 2)
    assert group.difference == pytest.approx(-0.25)


def test_few_documents_conclude_nothing() -> None:
    """Two documents that both fell are no clear gain, whatever the size of the fall."""
    for documents, verdict in ((2, "tie"), (9, "tie"), (10, "win")):
        gains = compare(
            "base",
            "trained",
            scores({"deu_Latn": 4.0}, documents=documents),
            scores({"deu_Latn": 1.0}, documents=documents),
            FACTS,
        )
        assert gains.languages[0].verdict == verdict
        assert gains.languages[0].test == ("McNemar" if verdict == "win" else "too few")
    assert gains.to_dict()["verdicts"] == {"comparisons": 1, "tested": 1, "clear": 1, "level": LEVEL}


def test_gains_are_read_back_and_judged_with_others() -> None:
    gains = compare("a", "b", scores({"deu_Latn": 4.0}), scores({"deu_Latn": 1.0}), FACTS)
    stored = json.loads(json.dumps(gains.to_dict()))
    assert gains_of(stored, Path("gains.json")) == gains
    lost = gains.with_verdicts([replace(row, verdict="tie") for row in gains.languages])
    assert [group.wins for group in lost.groups] == [0] * len(lost.groups)
    assert gains.groups[0].wins == 1
    del stored["languages"][0]["p"]
    with pytest.raises(UserError, match=r"gains.json: written by another version .*run it|evaluate run"):
        gains_of(stored, Path("gains.json"))


def test_error_of_a_ratio_is_that_of_its_documents() -> None:
    """Against the spread of the same ratio over many samples of documents."""
    draw = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(150):
        sizes = draw.integers(50, 500, 30)
        change = sizes * draw.normal(1.0, 0.3, 30)  # a gain that is the same for each byte is no noise
        tables = [
            {
                ("monolingual", "deu_Latn"): LanguageScores(
                    *("monolingual", "deu_Latn", "s", "m", "t"),
                    tuple(
                        DocumentScore(str(i), int(size), 5, float(nll) * math.log(2))
                        for i, (size, nll) in enumerate(zip(sizes, sizes * 3 + moved, strict=True))
                    ),
                )
            }
            for moved in (0 * change, change)
        ]
        row = compare("a", "b", *tables, FACTS).languages[0]
        found.append(row.difference)
        errors.append(row.error or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)
