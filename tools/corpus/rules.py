"""Filter rules for texts in one language: which documents each rule removes, and what it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emma.recipes.corpus_tables import table
from emma.recipes.schema.corpus import Thresholds
from emma.tools.corpus.shingles import character_shingles, word_shingles
from emma.tools.corpus.spam import spam_share
from emma.tools.languages.codepoints import DIGIT, LETTER, MARK, SPACE, SYMBOL, CodePoints
from emma.tools.languages.scripts import SPACELESS, part_mask

__all__ = ["Finding", "text_rules", "word_salad"]

_NEWLINE = 10
_ETHIOPIC_SPACE = 0x1361
"""The mark that separates words in Ethiopic text without spaces."""
_CHARACTER_GRAM, _WORD_GRAM = 20, 5
_MIN_FOR_REPEATS = 200
"""Shorter texts (in characters) are not checked for repeated n-grams: a two-line refrain is not a fault."""


_MIN_WORDS_FOR_COMMON = 20
"""Shorter texts are not checked for frequent words: a heading has few."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: `removed` marks documents, `values` are the measurements, `limit` is in words."""

    rule: str
    removed: NDArray[np.bool_]
    values: NDArray[np.float64] | NDArray[np.int64]
    limit: str


class _Measured:
    """Counts per document of a batch, each computed on first use."""

    def __init__(self, texts: Sequence[str], script: str) -> None:
        self.texts, self.script = texts, script
        self.points = CodePoints.of(texts)
        self._counts: dict[str, NDArray[np.int64]] = {}

    def count(self, name: str, mask: Callable[[], NDArray[np.bool_]]) -> NDArray[np.int64]:
        if name not in self._counts:
            self._counts[name] = self.points.count(mask())
        return self._counts[name]

    @property
    def characters(self) -> NDArray[np.int64]:
        return self.points.lengths

    @property
    def visible(self) -> NDArray[np.int64]:
        """Characters that are not whitespace."""
        return self.characters - self.count("spaces", lambda: self.points.class_of == SPACE)

    @property
    def letters(self) -> NDArray[np.int64]:
        return self.count(
            "letters", lambda: (self.points.class_of == LETTER) | (self.points.class_of == MARK)
        )

    @property
    def words(self) -> NDArray[np.int64]:
        """Number of words: runs of characters separated by whitespace."""

        def begins() -> NDArray[np.bool_]:
            space = (self.points.class_of == SPACE) | (self.points.values == _ETHIOPIC_SPACE)
            begin = ~space
            begin[1:] &= space[:-1]
            first = self.points.offsets[:-1][self.characters > 0]
            begin[first] = ~space[first]
            return begin

        return self.count("words", begins)

    def share(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        return part / np.maximum(whole, 1)


def text_rules(texts: Sequence[str], limits: Thresholds, script: str) -> Iterator[Finding]:
    """Findings of the rules that have a limit, in a fixed order.

    Args:
        texts: documents (or one side of pairs) in one language.
        limits: see `thresholds.thresholds_for`.
        script: ISO 15924 code of the language's script; "" for code.
    """
    measured = _Measured(texts, script)
    yield from _length(measured, limits)
    yield from _composition(measured, limits)
    yield from _words(measured, limits)
    yield from _lines(measured, limits)
    if limits.max_repeated_ngram_share is not None:
        values = _repeated_ngrams(measured)
        limit = limits.max_repeated_ngram_share
        yield Finding("repeated_ngrams", values > limit, values, f"share ≤ {limit}")
    if limits.max_spam_share is not None:
        values = np.array([spam_share(text) for text in texts])
        limit = limits.max_spam_share
        yield Finding("spam", values > limit, values, f"share ≤ {limit}")


def word_salad(
    texts: Sequence[str], limits: Thresholds, script: str, common: NDArray[np.uint64]
) -> Iterator[Finding]:
    """The finding of the rule `word_salad`, if it has a limit and the script has spaces.

    Args:
        texts: documents in one language.
        limits: see `thresholds.thresholds_for`.
        script: ISO 15924 code of the language's script.
        common: hashes of the language's most frequent words, ascending.
    """
    limit = limits.min_common_share
    if limit is None or not len(common) or script in SPACELESS:
        return
    words = word_shingles(texts, 1)
    at = np.searchsorted(common, words.hashes)
    at[at == len(common)] = 0
    document = np.repeat(np.arange(len(words)), np.diff(words.offsets))
    share = np.bincount(document, common[at] == words.hashes, len(words)) / np.maximum(words.units, 1)
    removed = (share < limit) & (words.units >= _MIN_WORDS_FOR_COMMON)
    yield Finding("word_salad", removed, share, f"share ≥ {limit}")


def _length(measured: _Measured, limits: Thresholds) -> Iterator[Finding]:
    characters = measured.characters
    if limits.min_characters is not None:
        yield Finding(
            "too_short",
            characters < limits.min_characters,
            characters,
            f"characters ≥ {limits.min_characters}",
        )
    if limits.max_characters is not None:
        yield Finding(
            "too_long",
            characters > limits.max_characters,
            characters,
            f"characters ≤ {limits.max_characters}",
        )


def _composition(measured: _Measured, limits: Thresholds) -> Iterator[Finding]:
    points, visible = measured.points, measured.visible
    if limits.max_replacement_share is not None:
        broken = measured.share(points.count(_broken(points)), measured.characters)
        limit = limits.max_replacement_share
        yield Finding("broken_encoding", broken > limit, broken, f"share ≤ {limit}")
    if limits.min_script_share is not None and measured.script not in ("", "Zyyy"):
        share, letters = _script_share(measured)
        limit = limits.min_script_share
        yield Finding("wrong_script", (share < limit) & (letters > 0), share, f"share ≥ {limit}")
    if limits.min_letter_share is not None:
        of_letters = measured.share(measured.letters, visible)
        limit = limits.min_letter_share
        yield Finding("few_letters", of_letters < limit, of_letters, f"share ≥ {limit}")
    if limits.max_digit_share is not None:
        digits = measured.share(points.count(points.class_of == DIGIT), visible)
        limit = limits.max_digit_share
        yield Finding("many_digits", digits > limit, digits, f"share ≤ {limit}")
    if limits.max_symbol_share is not None:
        symbols = measured.share(points.count(points.class_of == SYMBOL), visible)
        limit = limits.max_symbol_share
        yield Finding("many_symbols", symbols > limit, symbols, f"share ≤ {limit}")


def _script_share(measured: _Measured) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    present, counts = measured.points.script_counts()
    counts = counts.copy()
    counts[:, 0] = 0
    letters = counts.sum(axis=1)
    own = counts[:, part_mask(measured.script)[present]].sum(axis=1)
    return measured.share(own, letters), letters


# Characters that Latin-1 and Windows-1252 show for UTF-8 continuation bytes, except those that follow a
# letter in sound text: letters (š, ž, œ, ª, º), closing quotation marks, dashes, the ellipsis, primes,
# Catalan middle dots.
_CONTINUATION = (
    *(code for code in range(0xA1, 0xC0) if chr(code) not in "ª«´µ·º»"),
    0x20AC, 0x201A, 0x201E, 0x2020, 0x2021, 0x2C6, 0x2030, 0x2022, 0x2DC, 0x2122,
)  # fmt: skip


def _broken(points: CodePoints) -> NDArray[np.bool_]:
    """Marks U+FFFD, and pairs of characters that are UTF-8 decoded as a one-byte encoding."""
    values = points.values
    broken = values == 0xFFFD
    lead = np.flatnonzero((values >= 0xC2) & (values <= 0xF4))
    lead = lead[lead + 1 < len(values)]
    if len(lead):
        lead = lead[np.isin(values[lead + 1], _CONTINUATION)]
        broken[lead] = True
        broken[lead + 1] = True
    return broken


def _words(measured: _Measured, limits: Thresholds) -> Iterator[Finding]:
    if measured.script in SPACELESS:
        return
    if limits.min_words is not None:
        yield Finding(
            "too_few_words", measured.words < limits.min_words, measured.words, f"words ≥ {limits.min_words}"
        )
    low, high = limits.min_mean_word_length, limits.max_mean_word_length
    if low is not None or high is not None:
        mean = measured.share(measured.visible, measured.words)
        wrong = (mean < (low or 0)) | (mean > (high or np.inf))
        yield Finding("word_length", wrong & (measured.words > 0), mean, f"mean in {low or 0}…{high or '∞'}")


def _lines(measured: _Measured, limits: Thresholds) -> Iterator[Finding]:
    points = measured.points
    if limits.max_line_characters is not None or limits.max_mean_line_characters is not None:
        longest, mean = _line_lengths(points)
        most, most_mean = limits.max_line_characters, limits.max_mean_line_characters
        removed = (longest > (most or np.inf)) | (mean > (most_mean or np.inf))
        yield Finding("long_lines", removed, longest, f"longest ≤ {most or '∞'}, mean ≤ {most_mean or '∞'}")
    if limits.max_repeated_line_share is not None:
        values = np.array([_repeated_lines(text) for text in measured.texts])
        limit = limits.max_repeated_line_share
        yield Finding("repeated_lines", values > limit, values, f"share ≤ {limit}")
    if limits.max_boilerplate_share is not None:
        values = np.array([_boilerplate(text) for text in measured.texts])
        limit = limits.max_boilerplate_share
        yield Finding("boilerplate", values > limit, values, f"share ≤ {limit}")


def _line_lengths(points: CodePoints) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Longest and mean line of each document, in characters."""
    ends = np.flatnonzero(points.values == _NEWLINE)
    document = np.searchsorted(points.offsets, ends, side="right") - 1
    # The end of a document ends its last line; a line is what lies between consecutive ends.
    all_ends = np.concatenate([ends, points.offsets[1:]])
    owners = np.concatenate([document, np.arange(len(points))])
    order = np.lexsort((all_ends, owners))
    all_ends, owners = all_ends[order], owners[order]
    starts = np.empty_like(all_ends)
    starts[1:] = all_ends[:-1] + 1
    first = np.ones(len(owners), np.bool_)
    first[1:] = owners[1:] != owners[:-1]
    starts[first] = points.offsets[:-1]
    lengths = all_ends - starts
    longest = np.zeros(len(points), np.int64)
    np.maximum.at(longest, owners, lengths)
    return longest, np.bincount(owners, lengths, len(points)) / np.bincount(owners, minlength=len(points))


def _repeated_lines(text: str) -> float:
    """Share of a document's characters that are in repeats of earlier lines."""
    if "\n" not in text:
        return 0.0
    seen: set[str] = set()
    repeated = total = 0
    for line in text.split("\n"):
        line = line.strip()
        total += len(line)
        if line in seen:
            repeated += len(line)
        else:
            seen.add(line)
    return repeated / max(total, 1)


def _boilerplate(text: str) -> float:
    """Share of a document's lines that contain a phrase from `recipes/corpus/boilerplate.yaml`."""
    lower = text.lower()
    found = [phrase for phrase in table("boilerplate")["phrases"] if phrase in lower]
    if not found:
        return 0.0
    lines = [line for line in lower.split("\n") if line.strip()]
    return sum(any(phrase in line for phrase in found) for line in lines) / max(len(lines), 1)


def _repeated_ngrams(measured: _Measured) -> NDArray[np.float64]:
    values = np.zeros(len(measured.texts), np.float64)
    long = np.flatnonzero(measured.characters >= _MIN_FOR_REPEATS)
    if len(long):
        texts = [measured.texts[index] for index in long]
        if measured.script in SPACELESS:
            shingles = character_shingles(texts, _CHARACTER_GRAM)
        else:
            shingles = word_shingles(texts, _WORD_GRAM)
        values[long] = shingles.repeated_share()
    return values
