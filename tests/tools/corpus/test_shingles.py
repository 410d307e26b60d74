from __future__ import annotations

import re

import numpy as np
import pytest

from emma.tools.corpus.keys import text_keys
from emma.tools.corpus.minhash import jaccard, shingle_sets, signatures
from emma.tools.corpus.shingles import Shingles, character_shingles, word_shingles
from tests.tools.corpus.raw_text import ARTICLE, words

TEXTS = [*ARTICLE.values(), "", "...", "One", "one two", words(1), words(2)]


def plain_words(text: str, n: int) -> list[tuple[str, ...]]:
    """n-grams of words, spelled out."""
    found = re.findall(r"[^\W_]+", text.lower())
    return [tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))]


@pytest.mark.parametrize("n", [1, 3, 5])
def test_word_shingles_are_those_of_the_words(n: int) -> None:
    texts = [words(1), words(2), "", "one", "one two", f"{words(1)} {words(1)}"]
    shingles = word_shingles(texts, n)
    meaning: dict[int, tuple[str, ...]] = {}
    for row, text in enumerate(texts):
        expected = plain_words(text, n)
        hashes = shingles.of(row).tolist()
        assert len(hashes) == len(expected)
        for value, gram in zip(hashes, expected, strict=True):
            assert meaning.setdefault(value, gram) == gram
    assert len(meaning) == len(set(meaning.values()))


@pytest.mark.parametrize("make", [word_shingles, character_shingles])
def test_a_batch_gives_what_each_text_gives(make: object) -> None:
    batch: Shingles = make(TEXTS, 4)  # type: ignore[operator]
    for row, text in enumerate(TEXTS):
        single: Shingles = make([text], 4)  # type: ignore[operator]
        assert np.array_equal(batch.of(row), single.hashes)


def test_case_and_punctuation_do_not_count() -> None:
    assert np.array_equal(
        word_shingles(["One, two: THREE"], 2).hashes, word_shingles(["one two three"], 2).hashes
    )
    assert np.array_equal(character_shingles(["A b-C"], 2).hashes, character_shingles(["abc"], 2).hashes)


def test_repeated_share() -> None:
    shares = word_shingles(["a b a b a b", "a b c d", "", "a a a"], 2).repeated_share()
    assert shares.tolist() == pytest.approx([3 / 5, 0, 0, 1 / 2])


def test_signatures_estimate_the_jaccard_index() -> None:
    base = words(3, 400).split()
    rest = words(4, 400).split()
    texts = [" ".join(base), " ".join(base[:300] + rest[:100])]
    shingles = word_shingles(texts, 1)
    values, offsets = shingle_sets(shingles)
    exact = jaccard(values[: offsets[1]], values[offsets[1] :])
    rows = signatures(shingles, 512)
    assert exact == pytest.approx(300 / 500, abs=0.03)
    assert float((rows[0] == rows[1]).mean()) == pytest.approx(exact, abs=0.08)


def test_keys() -> None:
    keys = text_keys(["One, two.", "one  TWO", "one three", "...", "!!!", "ﬀ", ""], "monolingual")
    same = [[bool((a == b).all()) for b in keys] for a in keys]
    assert same[0][1]
    assert not same[0][2]
    assert not same[3][4]
    assert sum(map(sum, same)) == 7 + 2
    code = text_keys(["a = 1\n", "a=1", "A=1", "a-1"], "code")
    assert (code[0] == code[1]).all()
    assert not (code[1] == code[2]).all()
    assert not (code[1] == code[3]).all()
