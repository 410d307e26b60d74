from __future__ import annotations

import pytest

from emma.recipes.schema.corpus import Corpus, Thresholds
from emma.tools.corpus.filter import findings
from emma.tools.corpus.pair_rules import numbers, pair_rules, similarity
from emma.tools.corpus.rules import text_rules
from emma.tools.corpus.thresholds import thresholds_for
from tests.tools.corpus.raw_text import ARTICLE, LANGUAGES, words


def removed_by(text: str, limits: Thresholds, script: str = "Latn") -> list[str]:
    """Rules that remove a text, which is judged between two others: documents must not run into each other."""
    found = []
    for finding in text_rules(["x 1 !", text, ""], limits, script):
        if finding.removed[1]:
            found.append(finding.rule)
    return found


@pytest.mark.parametrize(
    ("rule", "limits", "text", "kept"),
    [
        ("too_short", {"min_characters": 5}, "abcd", "abcde"),
        ("too_long", {"max_characters": 5}, "abcdef", "abcde"),
        ("too_few_words", {"min_words": 3}, " two\nwords ", "one two\nthree"),
        ("word_length", {"min_mean_word_length": 2}, "a b c d e", "ab cd ef"),
        ("word_length", {"max_mean_word_length": 10}, "averyveryverylongword x", "word long"),
        ("few_letters", {"min_letter_share": 0.6}, "abc 1234 !!", "abcd efgh 12"),
        ("many_digits", {"max_digit_share": 0.3}, "ab 12 ٣٤", "abcdef 12"),
        ("many_symbols", {"max_symbol_share": 0.2}, "ab ++ €$ <>", "abcdefghijk +"),
        ("repeated_lines", {"max_repeated_line_share": 0.3}, "same\nsame\nsame", "one\ntwo\nsix"),
        ("repeated_ngrams", {"max_repeated_ngram_share": 0.3}, "spam and eggs again and " * 20, words(1)),
        ("long_lines", {"max_line_characters": 10}, "a\n" + "b" * 11 + "\nc", "b" * 10 + "\n" + "c" * 10),
        ("long_lines", {"max_mean_line_characters": 5}, "abcdef\nabcdef", "abcde\nabcde"),
        (
            "boilerplate",
            {"max_boilerplate_share": 0.4},
            "Privacy Policy\nAccept cookies\nNews",
            "Our privacy policy changed.\nIt did.\nIt will.",
        ),
        ("wrong_script", {"min_script_share": 0.5}, "Это русский text", "This really is русский"),
        ("broken_encoding", {"max_replacement_share": 0.01}, "It is caf\ufffd", "It is café, É»"),
        ("broken_encoding", {"max_replacement_share": 0.1}, "Ã¤Ã¶Ã¼ in vain", "äöü"),
    ],
)
def test_rules(rule: str, limits: dict[str, float], text: str, kept: str) -> None:
    thresholds = Thresholds(**limits)  # type: ignore[arg-type]
    assert removed_by(text, thresholds) == [rule]
    assert removed_by(kept, thresholds) == []


def test_without_limits_no_rule_runs() -> None:
    assert list(text_rules(["x"], Thresholds(), "Latn")) == []


def test_word_rules_leave_spaceless_scripts_alone() -> None:
    limits = Thresholds(min_words=5, max_mean_word_length=10)
    assert removed_by(ARTICLE["th"].replace(" ", ""), limits, "Thai") == []


def test_long_line_without_a_break_is_its_own() -> None:
    limits = Thresholds(max_line_characters=10)
    longest = next(iter(text_rules(["a\nbb", "", "ccc\n"], limits, ""))).values
    assert longest.tolist() == [2, 0, 3]


@pytest.mark.parametrize("language", list(ARTICLE))
def test_default_limits_keep_real_text(language: str) -> None:
    code = LANGUAGES[language]
    removed = [f.rule for f in findings(Corpus(), "monolingual", code, [[ARTICLE[language]]]) if f.removed[0]]
    assert removed == []


@pytest.mark.parametrize(
    ("one", "other"), [("en", "zh"), ("en", "th"), ("ru", "ja"), ("de", "fr"), ("ar", "hi")]
)
def test_default_limits_keep_real_pairs(one: str, other: str) -> None:
    pair = f"{LANGUAGES[one]}-{LANGUAGES[other]}"
    found = findings(Corpus(), "parallel", pair, [[ARTICLE[one]], [ARTICLE[other]]])
    assert [f.rule for f in found if f.removed[0]] == []


def test_limits_of_family_language_and_recipe() -> None:
    corpus = Corpus(
        filters={"monolingual": Thresholds(min_characters=7, max_digit_share=None)},
        language_filters={"tha_Thai": Thresholds(min_words=2)},
    )
    english = thresholds_for(corpus, "monolingual", "eng_Latn")
    thai = thresholds_for(corpus, "monolingual", "tha_Thai")
    assert (english.min_characters, english.max_digit_share, english.min_words) == (7, None, 3)
    assert (thai.min_words, thai.min_mean_word_length) == (2, None)
    assert thresholds_for(Corpus(), "monolingual", "tha_Thai").min_characters == 12
    side = thresholds_for(corpus, "parallel", "eng_Latn-tha_Thai", "tha_Thai")
    assert side.min_words == 2


@pytest.mark.parametrize(
    ("limits", "source", "target", "rule"),
    [
        ({"max_similarity": 0.9}, "The same text here", "the  same text here", "copy_of_source"),
        ({"max_similarity": 0.9}, "Press the button twice", "Drücke den Knopf zweimal", None),
        ({"max_length_ratio": 3.0}, "yes", "a very long answer indeed, with much more said", "length_ratio"),
        ({"max_length_ratio": 3.0}, "All human beings are born free and equal", "人人生而自由平等", None),
        ({"numbers_match": True}, "In 1948 there were 30", "Im Jahr 1948 waren es 31", "numbers_differ"),
        ({"numbers_match": True}, "In 1948 there were 30", "عام ١٩٤٨ كان هناك ٣٠", None),
    ],
)
def test_pair_rules(limits: dict[str, float], source: str, target: str, rule: str | None) -> None:
    found = pair_rules([source, "x"], [target, "y"], Thresholds(**limits))  # type: ignore[arg-type]
    assert [f.rule for f in found if f.removed[0]] == ([rule] if rule else [])


def test_similarity_and_numbers() -> None:
    assert similarity("abcdefghij", "abcdefghij!", 0.5) == pytest.approx(7 / 8)
    assert similarity("abc", "a much longer text", 0.5) == 0
    assert numbers("007 and 12.5") == {"7": 1, "12": 1, "5": 1}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "sme_Latn",
            "daid vuoigatvuođaid ja friddjavuođaid oktasaš áddejupmi lea erenoamáš dehálaš vai dát olahuvvo",
        ),
        (
            "ces_Latn",
            "že zneuznání lidských práv a pohrdání jimi vedlo k barbarským činům, urážejícím svědomí lidstva",
        ),
        (
            "gag_Latn",
            "Aylä— cümlenin bir natural hem ana kısımı hem onun var hakı cümlä hem devlet tarafından",
        ),
        ("amh_Ethi", "የሰው፡ልጅ፡ሁሉ፡ሲወለድ፡ነጻና፡በክብርና፡በመብትም፡እኩልነት፡ያለው፡ነው።"),
        ("vai_Vaii", "ꕪꘋ ꖷ ꗞꔧ ꕀꔤ ꔻꔤ ꔤ ꗃꗡ ꖸꕊ ꗪꗡ ꔻꔤꘂ ꕮ ꘃꖷ ꕉ ꗋꘋ ꕉꕜꕮ ꔔꘋ"),
        ("fra_Latn", "Il a dit « oui »… puis «À Paris», rien d’été—«été»."),
    ],
)
def test_default_limits_keep_what_looks_odd(code: str, text: str) -> None:
    removed = [f.rule for f in findings(Corpus(), "monolingual", code, [[text]]) if f.removed[0]]
    assert removed == []
