"""Continued BPE: new tokens of pairs of tokens, the pair that a weighted corpus holds most often first.

Continued BPE training: arXiv 2512.03989.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

from emma.tools.tokenizer.bpe import Bpe
from emma.tools.tokenizer.choice import Largest, Parity
from emma.tools.tokenizer.merges import NewToken, Simulation
from emma.tools.tokenizer.words import Words

__all__ = ["NewToken", "Selection", "learn", "weights_of"]

Selection = Literal["temperature", "parity"]

_UNIT = 1000
"""Weights are whole multiples of one thousandth, so that no sum depends on its order."""


def weights_of(size: np.ndarray, temperature: float) -> np.ndarray:
    """Weight of an occurrence by language, in thousandths (int64, at least 1): a language weighs bytes^(1/T) in all,
    and 1 is proportional.

    Args:
        size: bytes of each language, above 0.
        temperature: T.
    """
    share = size ** (1 / temperature)
    weight = share / share.sum() / size * size.sum()
    return np.maximum(1, np.rint(weight * _UNIT)).astype(np.int64)


def learn(
    bpe: Bpe,
    words: Words,
    tokens: int,
    *,
    temperature: float,
    min_count: int,
    max_token_bytes: int,
    selection: Selection = "temperature",
) -> list[NewToken]:
    """New tokens in the order of their ids; fewer than asked for where the text gives no more.

    Args:
        bpe: the base.
        words: of the training text.
        tokens: most new tokens.
        temperature: weighs languages, see `weights_of`; not used for the choice of pairs by `parity`.
        min_count: occurrences that a token must have, unweighted.
        max_token_bytes: longest token.
        selection: `temperature` takes the pair of the largest weighted count; `parity` the most frequent pair of the
            language whose aligned sentences then cost most tokens an English token.
    """
    weight = weights_of(words.bytes, temperature)[words.language]
    weighted = np.bincount(words.word, words.count * weight, len(words.words)).astype(np.int64)
    raw = np.bincount(words.word, words.count, len(words.words)).astype(np.int64)
    characters = (
        _missing_characters(bpe, words.words, weighted, raw, tokens // 2, min_count)
        if bpe.byte_fallback
        else []
    )
    simulation = Simulation(bpe, words, weighted, raw, [each.token for each in characters])
    chooser = Parity(simulation, words) if selection == "parity" else Largest(simulation)
    return characters + simulation.run(
        chooser, bpe.size + len(characters), tokens - len(characters), min_count, max_token_bytes
    )


def _missing_characters(
    bpe: Bpe, words: Sequence[str], weighted: np.ndarray, raw: np.ndarray, most: int, min_count: int
) -> list[NewToken]:
    """Visible characters that are no token, the heaviest first; white space and controls stay bytes."""
    found: dict[str, list[int]] = {}
    known = bpe.file.ids
    for word, weight, times in zip(words, weighted.tolist(), raw.tolist(), strict=True):
        for character in word:
            if character not in known:
                total = found.setdefault(character, [0, 0])
                total[0] += weight
                total[1] += times
    kept = [
        (-weight, character, times)
        for character, (weight, times) in found.items()
        if times >= min_count
        and (unicodedata.category(character)[0] in "LMNPS" or character in "\u200c\u200d")
    ]
    return [
        NewToken(bpe.size + place, character, None, -weight, times)
        for place, (weight, character, times) in enumerate(sorted(kept)[:most])
    ]
