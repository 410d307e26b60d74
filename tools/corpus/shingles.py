"""Hashes of word and character n-grams of many documents at once.

A text is reduced to its letters, marks and digits in lower case; all other characters separate words. The
hash of a run of characters is a polynomial in the code points modulo 2^64, computed from prefix sums, so that
all n-grams of a batch take a few numpy passes; a final mix spreads the hash over all 64 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emma.tools.languages.codepoints import DIGIT, LETTER, MARK, CodePoints

__all__ = ["Shingles", "character_shingles", "mix", "word_shingles"]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_STEP = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Shingles:
    """n-grams of documents.

    Attributes:
        hashes: hashes of all n-grams, in document order (uint64).
        offsets: where each document's hashes begin (documents + 1).
        units: number of words or characters in each document.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    units: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, document: int) -> NDArray[np.uint64]:
        """Hashes of one document's n-grams."""
        return self.hashes[self.offsets[document] : self.offsets[document + 1]]

    def repeated_share(self) -> NDArray[np.float64]:
        """Share of each document's n-grams that are repeats of earlier ones."""
        document = np.repeat(np.arange(len(self), dtype=np.uint64), np.diff(self.offsets))
        # The document number in the upper bits keeps documents apart; within one, 40 bits of hash are plenty.
        keys = np.sort((document << np.uint64(40)) | (self.hashes >> np.uint64(24)))
        same = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        repeats = np.bincount((keys[same] >> np.uint64(40)).astype(np.int64), minlength=len(self))
        return repeats / np.maximum(np.diff(self.offsets), 1)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bijection of 64-bit values that spreads each bit over all output bits (SplitMix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 … base^(count - 1) modulo 2^64."""
    powers = np.ones(count, np.uint64)
    size = 1
    while size < count:
        step = np.uint64(pow(base, size, 1 << 64))
        stop = min(2 * size, count)
        powers[size:stop] = powers[: stop - size] * step
        size = stop
    return powers


def _power_table(base: int, count: int) -> NDArray[np.uint64]:
    return _powers(base, 1 << max(16, (count - 1).bit_length()))[:count]


def _prefix(values: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Prefix sums of value × base^position (length + 1)."""
    prefix = np.zeros(len(values) + 1, np.uint64)
    np.cumsum((values.astype(np.uint64) + np.uint64(1)) * _power_table(_BASE, len(values)), out=prefix[1:])
    return prefix


def _letters(texts: Sequence[str]) -> tuple[CodePoints, NDArray[np.bool_]]:
    points = CodePoints.of([text.lower() for text in texts])
    kinds = points.class_of
    return points, (kinds == LETTER) | (kinds == MARK) | (kinds == DIGIT)


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def character_shingles(texts: Sequence[str], n: int) -> Shingles:
    """Hashes of the n-grams of letters, marks and digits; a shorter text is a single n-gram."""
    points, keep = _letters(texts)
    values = points.values[keep]
    lengths = points.count(keep)
    starts = _offsets(lengths)
    counts = np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))
    offsets = _offsets(counts)
    first = np.repeat(starts[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    stop = np.minimum(first + n, np.repeat(starts[1:], counts))
    prefix = _prefix(values)
    hashes = mix((prefix[stop] - prefix[first]) * _power_table(_INVERSE, len(values) + 1)[first])
    return Shingles(hashes, offsets, lengths)


def word_shingles(texts: Sequence[str], n: int) -> Shingles:
    """Hashes of the n-grams of words; a text with fewer words is a single n-gram."""
    points, keep = _letters(texts)
    before = np.zeros(len(keep), np.bool_)
    before[1:] = keep[:-1]
    before[points.offsets[:-1][points.lengths > 0]] = False
    begins = keep & ~before
    counts = points.count(begins)
    starts = np.flatnonzero(begins)
    after = np.zeros(len(keep), np.bool_)
    after[:-1] = keep[1:]
    after[points.offsets[1:][points.lengths > 0] - 1] = False
    stops = np.flatnonzero(keep & ~after) + 1
    prefix = _prefix(points.values)
    words = mix((prefix[stops] - prefix[starts]) * _power_table(_INVERSE, len(points.values) + 1)[starts])
    return _windows(words, counts, n)


def _windows(words: NDArray[np.uint64], counts: NDArray[np.int64], n: int) -> Shingles:
    """n-grams over the hashes of words, never across documents."""
    starts = _offsets(counts)
    grams = np.where(counts >= n, counts - n + 1, np.minimum(counts, 1))
    offsets = _offsets(grams)
    first = np.repeat(starts[:-1] - offsets[:-1], grams) + np.arange(offsets[-1])
    end = np.repeat(starts[1:], grams)
    hashes = np.zeros(len(first), np.uint64)
    for position in range(n):
        index = first + position
        inside = index < end
        word = words[np.minimum(index, max(len(words) - 1, 0))] if len(words) else hashes
        hashes = np.where(inside, hashes * _STEP + word, hashes)
    return Shingles(mix(hashes), offsets, counts)
