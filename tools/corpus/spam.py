"""Spam for pornography and gambling, found by its words."""

from __future__ import annotations

import functools
import re

from emma.recipes.corpus_tables import table

__all__ = ["spam_share"]

_DIFFERENT = 3
"""Different terms that make a document suspicious; sound text rarely has so many."""


@functools.cache
def _pattern() -> re.Pattern[str]:
    """All terms, longest first; those in scripts with spaces only as whole words."""
    terms = sorted(table("rules/spam")["terms"], key=lambda term: (-len(term), term))
    words = [re.escape(term) for term in terms if not _spaceless(term)]
    others = [re.escape(term) for term in terms if _spaceless(term)]
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)|{'|'.join(others)}")


def _spaceless(term: str) -> bool:
    # Thai, kana, Han, Hangul: words run on, or take endings.
    return any("\u0e00" <= character <= "\u0e7f" or character >= "\u3040" for character in term)


def spam_share(text: str) -> float:
    """Letters and digits in terms of spam as a share of all, in a text with at least three different terms; else 0."""
    lower = text.lower()
    found = [match[0] for match in _pattern().finditer(lower)]
    if len(set(found)) < _DIFFERENT:
        return 0.0
    return sum(map(_letters, found)) / max(_letters(lower), 1)


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))
