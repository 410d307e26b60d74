from __future__ import annotations

from collections import Counter

import pytest

from emma.tools.languages.codes import CATEGORIES, language, language_table, subject
from emma.tools.languages.labels import LanguageResolver


@pytest.mark.parametrize(
    ("code", "corpus"),
    [
        ("zho_Hans", "zho_Hani"),
        ("zho_Hant", "zho_Hani"),
        ("cmn_Hans", "zho_Hani"),
        ("zh", "zho_Hani"),
        ("chinese_traditional", "zho_Hani"),
        ("jpn_Jpan", "jpn_Japn"),
        ("pes_Arab", "fas_Arab"),
        ("uzn_Latn", "uzb_Latn"),
        ("khk_Cyrl", "mon_Cyrl"),
        ("gaz_Latn", "orm_Latn"),
        ("npi_Deva", "npi_Deva"),
        ("ne", "nep_Deva"),
        ("sw", "swa_Latn"),
        ("scottish_gaelic", "gla_Latn"),
        ("eng_Latn-zho_Hans", "zho_Hani"),
        ("fra_Latn-eng_Latn", "fra_Latn"),
        ("pt-BR", "por_Latn"),
    ],
)
def test_benchmark_codes_lead_to_the_corpus(code: str, corpus: str) -> None:
    assert language(code).corpus == corpus
    assert language(code).category in CATEGORIES


def test_categories_are_the_published_ones() -> None:
    own = Counter(row.category for row in language_table().values() if row.corpus == row.code)
    assert [own[name] for name in CATEGORIES] == [27, 79, 68, 162, 210, 393]


def test_every_language_of_the_benchmarks_has_a_family_and_a_script() -> None:
    unknown = [row.code for row in language_table().values() if not (row.family and row.script)]
    assert unknown == ["qaa_Latn", "zxx_Latn", "zxx_Zyyy"]
    assert language("eus_Latn").family == "isolate"
    assert language("swh_Latn").family == "Atlantic-Congo"


def test_a_language_that_the_corpus_lacks_is_unseen() -> None:
    found = language("lua_Latn")
    assert (found.corpus, found.category, found.script) == (None, "unseen", "Latn")
    assert language("made_up").category == "unseen"


def test_codes_stay_themselves_or_become_what_the_corpus_reads_them_as() -> None:
    """Where the corpus has another name for a code, both mean the same language."""
    resolver = LanguageResolver()
    for row in language_table().values():
        if row.corpus not in (None, row.code) and "_" in row.code and not row.code.islower():
            assert resolver.resolve(row.code).language == resolver.resolve(row.corpus or "").language


def test_subject_of_a_direction() -> None:
    assert subject("eng_Latn-yor_Latn") == "yor_Latn"
    assert subject("yor_Latn-eng_Latn") == "yor_Latn"
    assert language("eng_Latn").is_english
    assert language("en").is_english
    assert not language("eng_Latn-yor_Latn").is_english
