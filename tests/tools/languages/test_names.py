from __future__ import annotations

import iso639

from emma.tools.languages.names import language_name


def test_every_code_has_the_name_that_iso639_gives_it() -> None:
    assert len(iso639.ALL_LANGUAGES) > 8000
    assert {language.part3: language_name(language.part3) for language in iso639.ALL_LANGUAGES} == {
        language.part3: language.name for language in iso639.ALL_LANGUAGES
    }


def test_the_script_is_no_part_of_the_name_and_unknown_codes_stay() -> None:
    assert language_name("swh_Latn") == "Swahili (individual language)"
    assert language_name("fri") == "Western Frisian"  # withdrawn
    assert [language_name(code) for code in ("qaa_Latn", "", "en", "Id")] == ["qaa_Latn", "", "en", "Id"]
