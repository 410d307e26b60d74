from __future__ import annotations

import pytest

from emma.recipes.schema.corpus import Normalisation
from emma.tools.corpus.normalise import Normaliser
from tests.tools.corpus.raw_text import ARTICLE

normalise = Normaliser(Normalisation(), "monolingual")


@pytest.mark.parametrize("language", ["de", "fr", "ru", "hi", "zh", "ja"])
@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_mojibake_is_repaired(language: str, codec: str) -> None:
    text = ARTICLE[language]
    # As browsers do: bytes that are not characters of the code page are taken as Latin-1.
    broken = "".join(
        bytes([byte]).decode(codec, "ignore") or bytes([byte]).decode("latin-1") for byte in text.encode()
    )
    assert broken != text
    assert normalise(broken) == text


def test_one_broken_line_in_a_sound_document() -> None:
    sound = "Die Würde des Menschen ist unantastbar."
    assert normalise(f"{sound}\ncafÃ© au lait") == f"{sound}\ncafé au lait"


@pytest.mark.parametrize("text", list(ARTICLE.values()))
def test_sound_text_stays_as_it_is(text: str) -> None:
    assert normalise(text) == text


def test_text_that_looks_like_mojibake_stays() -> None:
    for text in ("NÃO É VERDADE", "«À Paris»", "São Tomé e Príncipe", "ÂME SŒUR"):
        assert normalise(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b\x07c", "abc"),
        ("zero\u200bwidth\ufeff soft\u00adhyphen", "zerowidth softhyphen"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("a\u200db\u200cc", "abc"),
        ("  two   spaces \n\n\n\n next\u00a0line \t", "two spaces\n\nnext line"),
        ("line\r\nends\rall\u2028over", "line\nends\nall\nover"),
        ("e\u0301", "é"),
        ("ﬁn", "ﬁn"),
        ("a &amp; b &lt;p&gt; x", "a & b\nx"),
        ("<p>One</p><p class='x'>two<br/>three</p>", "One\n\ntwo\nthree"),
        ("<script>var a = 1 < 2;</script>text", "text"),
        ("1 < 2 and 3 > 2, <unknown tag>", "1 < 2 and 3 > 2, <unknown tag>"),
        ("", ""),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_nfkc_by_choice() -> None:
    assert Normaliser(Normalisation(unicode="NFKC"), "monolingual")("ﬁn １２\u00a0x") == "fin 12 x"


def test_code_keeps_its_whitespace_and_tags() -> None:
    code = "def f():\n\treturn  '<p>&amp;</p>'\n\n\n\n# end  \n"
    assert Normaliser(Normalisation(), "code")(code) == code
    assert Normaliser(Normalisation(), "code")("a\r\nb\x00") == "a\nb"


def test_switches() -> None:
    nothing = Normalisation(mend_encoding=False, controls=False, markup=False, white_space=False)
    for text in ("cafÃ©", "a\u200bb", "<p>x</p>", "a  b "):
        assert Normaliser(nothing, "monolingual")(text) == text


def test_pii_by_choice() -> None:
    mask = Normaliser(Normalisation(mask_pii=True), "monolingual")
    text = mask("Mail jane.doe@mail.example.org, 10.1.2.3 or +49 30 1234567; version 1.2.3, 2024-05-06.")
    assert "jane.doe" not in text
    assert "10.1.2.3" not in text
    assert "1234567" not in text
    assert "version 1.2.3, 2024-05-06." in text
