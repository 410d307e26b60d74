from __future__ import annotations

import pytest

from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError, language_name


@pytest.mark.parametrize(
    ("label", "language", "script"),
    [
        ("en", "eng", None),
        ("zh", "cmn", None),
        ("zho_Hans", "cmn", "Hans"),
        ("zh-TW", "cmn", "Hant"),
        ("zh_CN", "cmn", "Hans"),
        ("zh_TW.UTF-8", "cmn", "Hant"),
        ("zht", "cmn", "Hant"),
        ("sr_latin", "srp", "Latn"),
        ("sr@latin", "srp", "Latn"),
        ("sr-Latn-RS", "srp", "Latn"),
        ("uz@cyrillic", "uzn", "Cyrl"),
        ("pt-br", "por", None),
        ("es-419", "spa", None),
        ("ca@valencia", "cat", None),
        ("de-1996", "deu", None),
        ("be_x_old", "bel", "Cyrl"),
        ("zh_min_nan", "nan", None),
        ("roa_rup", "rup", None),
        ("iw", "heb", None),
        ("in", "ind", None),
        ("mo", "ron", None),
        ("sh", "hbs", "Latn"),
        ("scc", "srp", None),
        ("ger", "deu", None),
        ("chi", "cmn", None),
        ("ara", "arb", None),
        ("ar_EG", "arz", "Arab"),
        ("nor", "nob", None),
        ("msa", "zsm", None),
        ("kor_Kore", "kor", "Hang"),
        ("jpn_Jpan", "jpn", "Jpan"),
        ("pa-PK", "pnb", "Arab"),
        ("Kurdish", "kmr", None),
        ("kxl", "kru", None),
        ("ckb_Arab", "ckb", "Arab"),
    ],
)
def test_labels_of_every_kind(label: str, language: str, script: str | None) -> None:
    found = LanguageResolver().resolve(label)
    assert (found.language, found.script) == (language, script)
    assert found.decision


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("zho_Hani", "zho_Hani"),
        ("cmn_Hans", "zho_Hani"),
        ("jpn_Jpan", "jpn_Japn"),
        ("jpn_Japn", "jpn_Japn"),
        ("kor_Hang", "kor_Hang"),
        ("ara_Arab", "ara_Arab"),
        ("arb_Arab", "arb_Arab"),
        ("aze_Latn", "aze_Latn"),
        ("azj_Latn", "azj_Latn"),
        ("khk_Cyrl", "mon_Cyrl"),
        ("pes_Arab", "fas_Arab"),
        ("hbs_Latn", "hbs_Latn"),
        ("ber_Latn", "ber_Latn"),
        ("ajp_Arab", "ajp_Arab"),
        ("yue_Hani", "yue_Hani"),
    ],
)
def test_the_papers_spelling(label: str, code: str) -> None:
    resolver = LanguageResolver(spelling="mala")
    found = resolver.resolve(label)
    assert found.script is not None
    assert resolver.spell(found.language, found.script) == code


def test_unknown_code_names_the_nearest_and_the_fix() -> None:
    with pytest.raises(UnknownLanguageError) as error:
        LanguageResolver().resolve("engl_Latn")
    assert "engl_Latn" in str(error.value)
    assert "eng (English)" in str(error.value)
    assert "data.corpus.languages.labels" in str(error.value)


@pytest.mark.parametrize("label", ["", "und", "mul", "xx", "qaa", "ber", "123"])
def test_no_language(label: str) -> None:
    with pytest.raises(UnknownLanguageError):
        LanguageResolver().resolve(label)


def test_unknown_script() -> None:
    with pytest.raises(UnknownLanguageError, match="Latn"):
        LanguageResolver().resolve("en_Latm")


def test_recipe_labels_go_first() -> None:
    found = LanguageResolver({"xx": "tok_Latn", "zh": "yue_Hant"}).resolve("xx")
    assert (found.language, found.script) == ("tok", "Latn")
    assert LanguageResolver({"zh": "yue_Hant"}).resolve("zh").language == "yue"


def test_scripts_of_a_language() -> None:
    resolver = LanguageResolver()
    assert resolver.scripts("srp")[0] == "Cyrl"
    assert "Latn" in resolver.scripts("srp")
    assert resolver.scripts("cmn")[:2] == ("Hans", "Hant")
    assert resolver.scripts("zzz") == ()


def test_names() -> None:
    assert language_name("deu_Latn") == "German"
    assert language_name("qqq_Latn") == "qqq_Latn"
