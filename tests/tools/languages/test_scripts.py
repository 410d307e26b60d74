from __future__ import annotations

import pytest

from emma.tools.corpus.labelling import choose_script
from emma.tools.languages.labels import LanguageResolver
from emma.tools.languages.scripts import compatible, family, measure
from tests.tools.corpus.raw_text import ARTICLE, LANGUAGES


def test_measured_scripts_of_real_text() -> None:
    measured = [script for script, _ in measure(list(ARTICLE.values()))]
    assert measured == [LANGUAGES[language].split("_")[1] for language in ARTICLE]


def test_chinese_forms_and_mixed_text() -> None:
    found = measure(
        [
            "人人生而自由,在尊嚴和權利上一律平等",
            "人人人人",
            "Привет world это русский текст",
            "12 + 34",
            "",
            "ab",
        ]
    )
    assert [script for script, _ in found] == ["Hant", "Hani", "Cyrl", None, None, None]


def test_long_text_is_sampled_in_the_middle_too() -> None:
    text = "latin header " * 20 + "русский текст " * 2000
    assert measure([text])[0][0] == "Cyrl"


@pytest.mark.parametrize(
    ("label", "measured", "script"),
    [
        ("srp", "Latn", "Latn"),
        ("srp", "Cyrl", "Cyrl"),
        ("srp", None, "Cyrl"),
        ("srp_Cyrl", "Latn", "Latn"),  # the label is wrong: Serbian is written in Latin too
        ("rus_Cyrl", "Latn", "Cyrl"),  # the text is not Russian: the filter will say so
        ("rus", "Latn", "Cyrl"),
        ("zh", "Hant", "Hant"),
        ("zh", "Hani", "Hans"),
        ("zho_Hans", "Hant", "Hant"),
        ("zho_Hani", "Hans", "Hani"),
        ("ja", "Hani", "Jpan"),
        ("ja", "Jpan", "Jpan"),
        ("ko", "Hang", "Hang"),
        ("tok_Latn", "Cyrl", "Latn"),
    ],
)
def test_label_against_text(label: str, measured: str | None, script: str) -> None:
    resolver = LanguageResolver()
    resolved = resolver.resolve(label)
    assert choose_script(resolved, resolver.scripts(resolved.language), measured)[0] == script


def test_families() -> None:
    assert (family("Thai"), family("Arab"), family("Latn")) == ("spaceless", "abjad", "spaced")
    assert compatible("Hani", "Jpan")
    assert not compatible("Hans", "Hant")
