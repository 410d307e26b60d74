"""Continued BPE: new tokens of pairs of tokens, the pair that a weighted corpus holds most often first.

Continued BPE training: arXiv 2512.03989. Parity-aware selection: arXiv 2508.04796.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from emma.tools.tokenizer.bpe import Bpe
from emma.tools.tokenizer.words import Words

__all__ = ["NewToken", "Selection", "learn", "weights_of"]

Selection = Literal["temperature", "parity"]

_UNIT = 1000
"""Weights are whole multiples of one thousandth, so that no sum depends on its order."""


@dataclass(frozen=True)
class NewToken:
    """A token that the base lacks.

    Attributes:
        id: its id.
        token: in the vocabulary's spelling.
        pair: ids of its halves; None for a character that SentencePiece's alphabet lacked.
        weighted: how often it was met, in thousandths of an occurrence by weight of the language.
        raw: how often it was met.
    """

    id: int
    token: str
    pair: tuple[int, int] | None
    weighted: int
    raw: int


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
    simulation = _Simulation(bpe, words, weighted, raw, [each.token for each in characters])
    chooser = _Parity(simulation, words) if selection == "parity" else _Largest(simulation)
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


_SHIFT = 32
_RIGHT = (1 << _SHIFT) - 1
# A pair of ids is one integer, left << 32 | right: pairs sort as their ids do.


class _Simulation:
    """The training words as ids, and the counts of neighbouring ids."""

    def __init__(
        self, bpe: Bpe, words: Words, weighted: np.ndarray, raw: np.ndarray, characters: Sequence[str]
    ) -> None:
        self.bpe = bpe
        self.taken = set(bpe.file.ids) | set(characters)
        self.names = [*bpe.names, *characters]
        encoded = bpe.encode_words(words.words, characters)
        # Only words of two tokens and more can change.
        self.places = [place for place, ids in enumerate(encoded) if len(ids) > 1]
        self.ids = [encoded[place] for place in self.places]
        self.weighted = weighted[self.places].tolist()
        self.raw = raw[self.places].tolist()
        self.whole = (
            {words.words[place]: number for number, place in enumerate(self.places)}
            if bpe.ignore_merges
            else {}
        )
        keys, numbers = self.all_pairs()
        order = np.argsort(keys, kind="stable")
        found, starts, self.number_of = *np.unique(keys[order], return_index=True), numbers[order]
        stops = [*starts.tolist(), len(keys)][1:]
        self.first = dict(zip(found.tolist(), zip(starts.tolist(), stops, strict=True), strict=True))
        self.by_weight, self.by_count = (
            dict(
                zip(
                    found.tolist(),
                    np.add.reduceat(np.array(each)[self.number_of], starts).tolist(),
                    strict=True,
                )
            )
            if len(keys)
            else {}
            for each in (self.weighted, self.raw)
        )
        self.later: dict[int, list[int]] = {}

    def all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Each pair of neighbours, and the number of its word, int64."""
        lengths = np.array([len(ids) for ids in self.ids], np.int64)
        flat = np.fromiter((id_ for ids in self.ids for id_ in ids), np.int64, int(lengths.sum()))
        number = np.repeat(np.arange(len(lengths)), lengths)
        kept = number[1:] == number[:-1]
        if self.bpe.byte_ids:
            # A merge of `<0xXX>` would be a token that is no string.
            text = ~np.isin(flat, list(self.bpe.byte_ids))
            kept &= text[1:] & text[:-1]
        return (flat[:-1] << _SHIFT | flat[1:])[kept], number[1:][kept]

    def _pairs(self, ids: list[int]) -> list[int]:
        bytes_ = self.bpe.byte_ids
        if not bytes_:
            return [left << _SHIFT | right for left, right in pairwise(ids)]
        return [
            left << _SHIFT | right
            for left, right in pairwise(ids)
            if left not in bytes_ and right not in bytes_
        ]

    def run(
        self, chooser: _Largest | _Parity, first: int, tokens: int, min_count: int, max_token_bytes: int
    ) -> list[NewToken]:
        """The merges, each applied to the words before the next is chosen."""
        found: list[NewToken] = []
        while len(found) < tokens and (pair := chooser.next()) is not None:
            left, right = pair >> _SHIFT, pair & _RIGHT
            token = self.names[left] + self.names[right]
            if (
                self.by_count[pair] < min_count
                or token in self.taken
                or not self._fits(token, max_token_bytes)
            ):
                chooser.forbid()
                continue
            id_ = first + len(found)
            found.append(NewToken(id_, token, (left, right), self.by_weight[pair], self.by_count[pair]))
            self.taken.add(token)
            self.names.append(token)
            self._merge(pair, id_, token, chooser)
        return found

    def _fits(self, token: str, max_token_bytes: int) -> bool:
        return self.bpe.admits(token) and len(self.bpe.bytes_of(token)) <= max_token_bytes

    def _merge(self, pair: int, id_: int, token: str, chooser: _Largest | _Parity) -> None:
        start, stop = self.first.get(pair, (0, 0))
        numbers = {*self.number_of[start:stop].tolist(), *self.later.pop(pair, ())}
        whole = self.whole.get(token, -1)
        if whole >= 0:
            numbers.add(whole)
        by_weight, by_count, later = self.by_weight, self.by_count, self.later
        fresh: set[int] = set()
        for number in sorted(numbers):
            old = self.ids[number]
            new = [id_] if number == whole else _merged(old, pair >> _SHIFT, pair & _RIGHT, id_)
            if len(new) == len(old):
                continue  # the pair has gone from this word
            weight, times = self.weighted[number], self.raw[number]
            before, after = self._pairs(old), self._pairs(new)
            for each in before:
                by_weight[each] -= weight
                by_count[each] -= times
            for each in after:
                if each in by_weight:
                    by_weight[each] += weight
                    by_count[each] += times
                else:
                    by_weight[each], by_count[each] = weight, times
                if each >> _SHIFT == id_ or each & _RIGHT == id_:
                    later.setdefault(each, []).append(number)
                    fresh.add(each)
            self.ids[number] = new
            chooser.changed(number, before, after, len(old) - len(new))
        chooser.add(fresh)


def _merged(ids: list[int], left: int, right: int, id_: int) -> list[int]:
    new: list[int] = []
    place, size = 0, len(ids)
    while place < size:
        if ids[place] == left and place + 1 < size and ids[place + 1] == right:
            new.append(id_)
            place += 2
        else:
            new.append(ids[place])
            place += 1
    return new


class _Queue:
    """Pairs, the one with the largest count first, equal ones by their ids. Counts only fall once a pair is in it."""

    def __init__(self, counts: dict[int, int]) -> None:
        self.counts = counts
        self.heap = [(-count, pair) for pair, count in counts.items() if count > 0]
        heapq.heapify(self.heap)

    def add(self, pair: int) -> None:
        """Puts in a pair that is new."""
        heapq.heappush(self.heap, (-self.counts[pair], pair))

    def next(self) -> int | None:
        """The first pair, which stays in; None where none is left."""
        while self.heap:
            count, pair = self.heap[0]
            now = self.counts[pair]
            if now == -count and now > 0:
                return pair
            if now > 0:
                heapq.heapreplace(self.heap, (-now, pair))
            else:
                heapq.heappop(self.heap)
        return None

    def forbid(self) -> None:
        """Takes the first pair out for good."""
        heapq.heappop(self.heap)


class _Largest:
    """The pair with the largest weighted count."""

    def __init__(self, simulation: _Simulation) -> None:
        self._queue = _Queue(simulation.by_weight)
        self.next, self.forbid = self._queue.next, self._queue.forbid

    def add(self, pairs: set[int]) -> None:
        """Takes up pairs that a merge has made."""
        for pair in pairs:
            self._queue.add(pair)

    def changed(self, number: int, before: list[int], after: list[int], fewer: int) -> None:
        """Nothing to note: the simulation has the counts."""


class _Parity:
    """The most frequent pair of the language whose aligned text now costs most tokens an English token."""

    def __init__(self, simulation: _Simulation, words: Words) -> None:
        length = np.ones(len(words.words), np.int64)
        length[simulation.places] = [len(ids) for ids in simulation.ids]
        tokens = np.zeros(len(words.languages), np.int64)
        np.add.at(tokens, words.language, words.aligned * length[words.word])
        self._tokens, self._english = tokens, words.english
        self._premium = np.where(words.english > 0, tokens / np.maximum(words.english, 1), 0.0)
        self._chosen = -1
        self._queues: dict[int, _Queue] = {}
        self._counts: list[dict[int, int]] = [defaultdict(int) for _ in words.languages]
        # Of each word: language, occurrences, occurrences in aligned text.
        self._languages: list[list[tuple[int, int, int]]] = [[] for _ in simulation.places]
        number_of = np.full(len(words.words), -1)
        number_of[simulation.places] = np.arange(len(simulation.places))
        entries = (number_of[words.word], words.language, words.count, words.aligned)
        for number, language, times, aligned in zip(*(each.tolist() for each in entries), strict=True):
            if number >= 0 and words.english[language]:
                self._languages[number].append((language, times, aligned))
        for pair, number in zip(*(each.tolist() for each in simulation.all_pairs()), strict=True):
            for language, times, _ in self._languages[number]:
                self._counts[language][pair] += times

    def next(self) -> int | None:
        """The chosen language's first pair; a language without one has no further turn."""
        while True:
            language = int(self._premium.argmax())
            if self._premium[language] <= 0:
                return None
            if language not in self._queues:
                self._queues[language] = _Queue(self._counts[language])
            if (pair := self._queues[language].next()) is not None:
                self._chosen = language
                return pair
            self._premium[language] = 0.0

    def forbid(self) -> None:
        """Takes the pair out for this language."""
        self._queues[self._chosen].forbid()

    def add(self, pairs: set[int]) -> None:
        """Takes up pairs that a merge has made, in the languages that have them."""
        for language, queue in self._queues.items():
            counts = self._counts[language]
            for pair in pairs:
                if pair in counts:
                    queue.add(pair)

    def changed(self, number: int, before: list[int], after: list[int], fewer: int) -> None:
        """Notes that a word has other pairs, and fewer tokens, than before."""
        for language, times, aligned in self._languages[number]:
            counts = self._counts[language]
            for pair in before:
                counts[pair] -= times
            for pair in after:
                counts[pair] += times
            if aligned and self._premium[language] > 0:
                self._tokens[language] -= fewer * aligned
                self._premium[language] = self._tokens[language] / self._english[language]
