"""Filter rules for sentence pairs that compare the two sides."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Thresholds
from emma.tools.corpus.rules import Finding
from emma.tools.languages.codepoints import CodePoints, script_names

__all__ = ["pair_rules", "weighted_lengths"]

# Roughly how many Latin letters one character of a script amounts to in translations of the same text.
_WEIGHTS = {
    "Hani": 3.0,
    "Hira": 1.8,
    "Kana": 1.8,
    "Hang": 2.2,
    "Ethi": 1.6,
    "Yiii": 3.0,
    "Cans": 1.6,
    "Vaii": 1.8,
}
_SHORT = 10.0
"""Added to both lengths, so that one word against two is not a mismatch."""

_NUMBER = re.compile(r"\d+")


def weighted_lengths(texts: Sequence[str]) -> NDArray[np.float64]:
    """Approximate length of each text in Latin letters."""
    present, counts = CodePoints.of(texts).script_counts()
    weights = np.array([_WEIGHTS.get(script_names()[index], 1.0) for index in present])
    return counts @ weights


def pair_rules(sources: Sequence[str], targets: Sequence[str], limits: Thresholds) -> Iterator[Finding]:
    """Findings of the rules that have a limit, in a fixed order, for sentence pairs of one language pair."""
    if limits.max_similarity is not None:
        values = np.array(
            [similarity(s, t, limits.max_similarity) for s, t in zip(sources, targets, strict=True)]
        )
        yield Finding(
            "copy_of_source", values > limits.max_similarity, values, f"similarity ≤ {limits.max_similarity}"
        )
    if limits.max_length_ratio is not None:
        one, other = weighted_lengths(sources) + _SHORT, weighted_lengths(targets) + _SHORT
        ratio = np.maximum(one / other, other / one)
        yield Finding(
            "length_ratio", ratio > limits.max_length_ratio, ratio, f"ratio ≤ {limits.max_length_ratio}"
        )
    if limits.numbers_match:
        differ = np.array([numbers(s) != numbers(t) for s, t in zip(sources, targets, strict=True)], np.bool_)
        yield Finding("numbers_differ", differ, differ.astype(np.int64), "the same numbers on both sides")


def similarity(source: str, target: str, limit: float) -> float:
    """Jaccard index of the two sides' character 4-grams.

    1 if the sides differ only in case and whitespace; 0, without counting, if their lengths rule out more
    than `limit`.
    """
    source, target = " ".join(source.casefold().split()), " ".join(target.casefold().split())
    if source == target:
        return 1.0
    shorter, longer = sorted((len(source), len(target)))
    if shorter < 8 or shorter < longer * limit * 0.9:
        return 0.0
    one, other = ({text[i : i + 4] for i in range(len(text) - 3)} for text in (source, target))
    return len(one & other) / len(one | other)


def numbers(text: str) -> Counter[str]:
    """The numbers in a text, with the digits of any script turned into European ones."""
    found = _NUMBER.findall(text)
    return Counter("".join(str(unicodedata.decimal(c)) for c in number).lstrip("0") for number in found)
