"""Continued BPE against a reference that counts all pairs anew before each merge; words split in bulk and one by one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from emma.tools.tokenizer.bpe import Bpe, open_tokenizer
from emma.tools.tokenizer.learn import learn, weights_of
from emma.tools.tokenizer.words import Words
from tests.tokenizer_styles import write_style

_FEW = 5


def _words(letters: str) -> Words:
    """Words with runs of one letter, in three languages, the last without pairs."""
    generator = np.random.default_rng(7)
    names = sorted({"".join(generator.choice(list(letters), generator.integers(2, 9))) for _ in range(160)})
    word, language = np.nonzero(generator.random((len(names), 3)) < 0.6)
    count = generator.integers(1, 9, len(word))
    aligned = np.where(language < 2, generator.integers(0, count + 1), 0)
    size = np.bincount(language, count * 7, 3).astype(np.int64)
    english = np.array([100, 97, 0])  # so that the languages take turns
    return Words(names, ["a", "b", "c"], size, size, english, word, language, count, aligned)


def _merged(ids: list[int], pair: tuple[int, int], id_: int) -> list[int]:
    new: list[int] = []
    for each in ids:
        if new and (new[-1], each) == pair:
            new[-1] = id_
        else:
            new.append(each)
    return new


def _reference(bpe: Bpe, words: Words, tokens: int, temperature: float, selection: str) -> list[object]:
    ids, taken = bpe.encode_words(words.words), set(bpe.file.ids)
    names = list(bpe.names)
    weight = weights_of(words.bytes, temperature)[words.language]
    weighted = np.bincount(words.word, words.count * weight, len(ids)).astype(np.int64)
    raw = np.bincount(words.word, words.count, len(ids)).astype(np.int64)
    open_languages = [number for number, english in enumerate(words.english) if english]
    found: list[object] = []
    while len(found) < tokens:
        counts: tuple[Counter[tuple[int, int]], ...] = (Counter(), Counter(), Counter())
        premium = np.zeros(len(words.languages))
        for number, own in enumerate(ids):
            for pair in pairwise(own):
                counts[0][pair] += int(weighted[number])
                counts[1][pair] += int(raw[number])
        lengths = np.array([len(own) for own in ids])
        np.add.at(premium, words.language, words.aligned * lengths[words.word])
        if selection == "parity":
            if not open_languages:
                break
            chosen = max(open_languages, key=lambda each: (premium[each] / words.english[each], -each))
            for number, language, times in zip(words.word, words.language, words.count, strict=True):
                for pair in pairwise(ids[number]) if language == chosen else ():
                    counts[2][pair] += int(times)
        keys = counts[2] if selection == "parity" else counts[0]
        fit = [
            (-times, pair)
            for pair, times in keys.items()
            if counts[1][pair] >= _FEW
            and (name := names[pair[0]] + names[pair[1]]) not in taken
            and len(name) <= 6
        ]
        if not fit:
            if selection != "parity":
                break
            open_languages.remove(chosen)
            continue
        _, pair = min(fit)
        name, id_ = names[pair[0]] + names[pair[1]], len(names)
        found.append((id_, name, pair, counts[0][pair], counts[1][pair]))
        taken.add(name)
        names.append(name)
        ids = [_merged(own, pair, id_) for own in ids]
        if bpe.ignore_merges and name in words.words:
            ids[words.words.index(name)] = [id_]
    return found


@pytest.mark.parametrize("selection", ["temperature", "parity"])
@pytest.mark.parametrize("style", ["qwen", "llama3"])
def test_merges_are_those_of_counting_anew(tmp_path: Path, style: str, selection: str) -> None:
    bpe = Bpe.read(open_tokenizer(write_style(tmp_path, style)))
    for letters in ("zx", "zqxj", "ehtrn"):
        words = _words(letters)
        new = learn(
            bpe,
            words,
            160,
            temperature=3.3,
            min_count=_FEW,
            max_token_bytes=6,
            selection=selection,  # type: ignore[arg-type]
        )
        expected = _reference(bpe, words, 160, 3.3, selection)
        assert len(expected) > 20
        assert [(each.id, each.token, each.pair, each.weighted, each.raw) for each in new] == expected


@pytest.mark.parametrize("style", ["llama3", "qwen", "mistral"])
def test_words_split_in_bulk_are_those_split_one_by_one(tmp_path: Path, style: str) -> None:
    bpe = Bpe.read(open_tokenizer(write_style(tmp_path, style)))
    text = (
        "Foo, bar  (baz)\n\nqux 12345 a\u00a0b\tc 'tis don't DON'T \U0001f600\U0001f600 x\u200dy किताब में \n ร้าน "
        'मैं\r\nend.  .. "q" a/b_c -- é\u0301 '
    )
    chunks = Counter(text.split(" ")) + Counter(f" {part}" for part in text.split(" "))
    one_by_one: Counter[str] = Counter()
    for chunk, times in chunks.items():
        for word, count in bpe.words({chunk: times}).items():
            one_by_one[word] += count
    assert bpe.words(chunks) == one_by_one


def test_words_that_a_pattern_joins_are_split_one_by_one(tmp_path: Path) -> None:
    own = Bpe.read(open_tokenizer(write_style(tmp_path, "qwen")))
    pattern = {
        "type": "Split",
        "pattern": {"Regex": r"\w+ \w+|\s|\w+"},
        "behavior": "Isolated",
        "invert": False,
    }
    bpe = Bpe(own.file, {**own.value, "pre_tokenizer": pattern})
    assert bpe.words({" foo": 2, " bar": 3}) == {" ": 5, "foo": 2, "bar": 3}
