"""What people write for a language, and what it is taken for."""

from __future__ import annotations

import pytest

from emma.base.errors import UserError
from emma.tools.adapt.languages import codes_of, read_languages
from emma.tools.corpus.survey import Size, Survey


@pytest.mark.parametrize(
    ("given", "read", "note"),
    [
        ("yor", ("yor", None), ""),
        ("Zulu", ("zul", None), ""),
        ("sr-Latn", ("srp", "Latn"), ""),
        ("swh_Latn", ("swh", "Latn"), ""),
        ("Swahili", ("swh", None), "macro-language swa"),
        ("zh-TW", ("cmn", "Hant"), "region TW"),
        ("Oromo", ("gaz", None), "West Central Oromo"),
        ("Fulah", ("ful", None), "its languages' (ffm"),
    ],
)
def test_a_label_or_a_name_is_read(given: str, read: tuple[str, str | None], note: str) -> None:
    (wanted,) = read_languages([given])
    assert (wanted.language, wanted.script) == read
    assert note in wanted.note
    assert bool(note) == bool(wanted.note)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("swahilli", "nearest: Swahili"),
        ("Karen", "Bwe Karen (bwe)"),
        ("Fang", "several languages: fak (Fang (Cameroon)), fan"),
        ("xxq", "unknown language code `xxq`; nearest:"),
        (" , ", "names no language"),
    ],
)
def test_what_names_no_language_is_refused_with_what_is_near(given: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_languages([given])
    assert says in str(error.value)
    assert "Fix:" in str(error.value)


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(UserError, match=r"(?s)swahilli.*yoruuba"):
        read_languages(["swahilli,zul", "yoruuba"])


def found(**sizes: int) -> Survey:
    return Survey({("monolingual", code): Size(1, size, 1) for code, size in sizes.items()})


def test_the_text_decides_on_the_script() -> None:
    here = found(srp_Cyrl=1000, srp_Latn=10, yor_Latn=5)
    assert list(codes_of(here, read_languages(["srp,yor"]))) == ["srp_Cyrl", "yor_Latn"]
    assert list(codes_of(here, read_languages(["srp_Latn"]))) == ["srp_Latn"]


def test_two_scripts_have_to_be_named() -> None:
    here = found(srp_Cyrl=1000, srp_Latn=900)
    with pytest.raises(UserError, match=r"2 scripts here: srp_Cyrl .* --languages srp_Cyrl,srp_Latn"):
        codes_of(here, read_languages(["srp"]))
    assert list(codes_of(here, read_languages(["srp_Cyrl", "srp"]))) == ["srp_Cyrl", "srp_Latn"]


def test_a_language_without_text_is_named_with_what_there_is() -> None:
    here = found(srp_Cyrl=1000)
    here.others.update({"fuv": 3, "en-ff": 2})
    with pytest.raises(UserError) as error:
        codes_of(here, read_languages(["zul", "srp_Latn", "fuq"]))
    assert "no text in zul (Zulu), asked for as `zul`" in str(error.value)
    assert (
        "no text in srp_Latn (Serbian), asked for as `srp_Latn`; of this language there is srp_Cyrl"
        in str(error.value)
    )
    assert "there is text labelled ff, fuv, of the same macro-language" in str(error.value)
