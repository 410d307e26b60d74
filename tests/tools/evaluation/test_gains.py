from __future__ import annotations

import math
from dataclasses import replace

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.gains import compare
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.evaluation.likelihood import DocumentScore


def scores(values: dict[str, float], text: str = "t") -> dict[tuple[str, str], LanguageScores]:
    """For every language, three documents of 10 bytes with about the given bits per byte."""
    return {
        ("monolingual", language): LanguageScores(
            "monolingual",
            language,
            "signature",
            "model",
            text,
            tuple(DocumentScore(str(i), 10, 5, 10 * bits * math.log(2) + i / 100) for i in range(3)),
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
    assert (groups["all but English"].gains, groups["all but English"].losses) == (2, 1)
    assert groups["high"].difference == pytest.approx(-0.5)
    assert groups["low"].difference == pytest.approx(-1.0)
    assert groups["no category"].difference == pytest.approx(0.3)
    assert groups["English"].difference == pytest.approx(0.2)
    assert "seen by the base" not in groups
    assert groups["unseen by the base"].languages == 3
    assert groups["in the mix"].languages == 1
    assert groups["not in the mix"].languages == 2
    assert {row.language: row.verdict for row in gains.languages} == {
        "deu_Latn": "gain",
        "eng_Latn": "loss",
        "yor_Latn": "gain",
        "zul_Latn": "loss",
    }


def test_equal_scores_are_a_tie() -> None:
    gains = compare("base", "trained", scores({"deu_Latn": 2.0}), scores({"deu_Latn": 2.0}), FACTS)
    assert gains.languages[0].verdict == "tie"
    assert gains.groups[0].gains == gains.groups[0].losses == 0


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
