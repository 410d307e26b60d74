"""A batch's texts as one array of code points, so that counting per document takes a few numpy operations."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DIGIT",
    "LETTER",
    "MARK",
    "OTHER",
    "PUNCTUATION",
    "SPACE",
    "SYMBOL",
    "CodePoints",
    "classes",
    "script_names",
    "scripts",
]

_UNICODE = 0x110000

# Character classes, by Unicode general category.
OTHER, LETTER, MARK, DIGIT, PUNCTUATION, SYMBOL, SPACE = range(7)
_CLASS_OF_CATEGORY = {
    "L": LETTER,
    "M": MARK,
    "N": DIGIT,
    "P": PUNCTUATION,
    "S": SYMBOL,
    "Z": SPACE,
    "C": OTHER,
}


@functools.cache
def classes() -> NDArray[np.uint8]:
    """Class of every code point (uint8, length 0x110000)."""
    table = np.zeros(_UNICODE, np.uint8)
    # Planes 4 to 16 hold only variation selectors (marks, plane 14) and private use.
    of_letter = np.zeros(128, np.uint8)
    for letter, kind in _CLASS_OF_CATEGORY.items():
        of_letter[ord(letter)] = kind
    for first, last in ((0, 0x40000), (0xE0000, 0xE0200)):
        # Category names have two letters; only the first counts.
        categories = "".join(map(unicodedata.category, map(chr, range(first, last)))).encode()
        table[first:last] = of_letter[np.frombuffer(categories, np.uint8)[::2]]
    for character in "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85":
        table[ord(character)] = SPACE
    return table


@functools.cache
def script_names() -> tuple[str, ...]:
    """ISO 15924 codes by index; index 0 is "" (common, inherited, unknown)."""
    from GlotScript.GlotScript import SCRIPT_RANGES

    return ("", *sorted(set(SCRIPT_RANGES) - {"Zyyy", "Zinh", "Zzzz"}))


@functools.cache
def scripts() -> NDArray[np.uint8]:
    """Index into `script_names` of every code point (uint8, length 0x110000)."""
    from GlotScript.GlotScript import SCRIPT_RANGES

    table = np.zeros(_UNICODE, np.uint8)
    for index, name in enumerate(script_names()):
        for first, last in SCRIPT_RANGES.get(name, []):
            table[first : last + 1] = index
    return table


@dataclass(frozen=True)
class CodePoints:
    """The documents of a batch.

    Attributes:
        values: code points of all documents, concatenated (uint32).
        offsets: where each document starts, and the end of the last one (int64, documents + 1).
    """

    values: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> CodePoints:
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        encoded = "".join(texts).encode("utf-32-le", "surrogatepass")
        return cls(np.frombuffer(encoded, np.uint32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each document."""
        return np.diff(self.offsets)

    @functools.cached_property
    def class_of(self) -> NDArray[np.uint8]:
        """Class of every character."""
        return classes()[self.values]

    @functools.cached_property
    def script_of(self) -> NDArray[np.uint8]:
        """Script index of every character."""
        return scripts()[self.values]

    def count(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number of characters that the mask selects in each document."""
        counts = np.zeros(len(self), np.int64)
        filled = np.flatnonzero(np.diff(self.offsets))
        if len(filled):
            counts[filled] = np.add.reduceat(mask, self.offsets[filled], dtype=np.int64)
        return counts

    def script_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Letters and marks of each script in each document.

        Returns:
            Indices of the scripts that occur (ascending, 0 always first), and counts (documents × scripts).
        """
        occurs = np.zeros(256, np.bool_)
        occurs[self.script_of] = True
        occurs[0] = True
        present = np.flatnonzero(occurs)
        if len(present) <= 8:
            return present, np.stack([self.count(self.script_of == index) for index in present], axis=1)
        column = np.zeros(256, np.int64)
        column[present] = np.arange(len(present))
        cell = np.repeat(np.arange(len(self), dtype=np.int64) * len(present), self.lengths)
        cell += column[self.script_of]
        counts = np.bincount(cell, minlength=len(self) * len(present))
        return present, counts.reshape(len(self), len(present))
