"""Continued BPE: new tokens of pairs of tokens, the pair that a weighted corpus holds most often first.

Continued BPE training: arXiv 2512.03989. Parity-aware selection: arXiv 2508.04796.
"""

from __future__ import annotations

import heapq
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul
from typing import Literal

import numpy as np

from emma.base.errors import UserError
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


# A word is a string whose characters are ids: strings find and replace pairs faster than any loop here, and sort as their
# ids do.
_MOST_IDS = sys.maxunicode + 1


class _Simulation:
    """The training words as strings of ids, and the words in which each pair of neighbours was met."""

    def __init__(
        self, bpe: Bpe, words: Words, weighted: np.ndarray, raw: np.ndarray, characters: Sequence[str]
    ) -> None:
        self.bpe = bpe
        self.taken = set(bpe.file.ids) | set(characters)
        self.names = [*bpe.names, *characters]
        self.bytes = frozenset(map(chr, bpe.byte_ids))
        encoded = bpe.encode_words(words.words, characters)
        # Only words of two tokens and more can change.
        self.places = [place for place, ids in enumerate(encoded) if len(ids) > 1]
        self.ids = ["".join(map(chr, encoded[place])) for place in self.places]
        self.weighted = weighted[self.places].tolist()
        self.raw = raw[self.places].tolist()
        self.whole = (
            {words.words[place]: number for number, place in enumerate(self.places)}
            if bpe.ignore_merges
            else {}
        )
        keys, numbers = self._all_pairs()
        order = np.argsort(keys, kind="stable")
        keys, self._numbers = keys[order], numbers[order]
        new = np.ones(len(keys), bool)
        new[1:] = keys[1:] != keys[:-1]
        starts = np.flatnonzero(new)
        self._limits = np.append(starts, len(keys))
        halves = np.stack([keys[starts] >> 32, keys[starts] & 0xFFFFFFFF], axis=1).astype("<u4")
        joined = halves.tobytes().decode("utf-32-le", "surrogatepass")
        self._first = {joined[2 * place : 2 * place + 2]: place for place in range(len(starts))}
        self._later: defaultdict[str, list[int]] = defaultdict(list)

    def _all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Each pair of neighbours, left << 32 | right, and the number of its word, int64."""
        joined = "".join(self.ids).encode("utf-32-le", "surrogatepass")
        flat = np.frombuffer(joined, "<u4").astype(np.int64)
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        number = np.repeat(np.arange(len(lengths)), lengths)
        kept = number[1:] == number[:-1]
        if self.bytes:
            # A merge of `<0xXX>` would be a token that is no string.
            text = ~np.isin(flat, list(self.bpe.byte_ids))
            kept &= text[1:] & text[:-1]
        return (flat[:-1] << 32 | flat[1:])[kept], number[1:][kept]

    def sums(self, values: Sequence[int]) -> dict[str, int]:
        """By pair that the base leaves: the sum of its words' values."""
        if not self._first:
            return {}
        sums = np.add.reduceat(np.array(values)[self._numbers], self._limits[:-1])
        return dict(zip(self._first, sums.tolist(), strict=True))

    def met(self) -> Iterator[tuple[str, list[int]]]:
        """Pairs that the base leaves, each with the numbers of its words, as often as they hold it."""
        numbers, limits = self._numbers.tolist(), self._limits.tolist()
        for pair, (start, stop) in zip(self._first, pairwise(limits), strict=True):
            yield pair, numbers[start:stop]

    def _pairs(self, ids: str) -> list[str]:
        return [
            left + right
            for left, right in pairwise(ids)
            if left not in self.bytes and right not in self.bytes
        ]

    def _holding(self, pair: str) -> dict[int, int]:
        """Numbers of the words that hold a pair now, and how often; called once for each pair."""
        ids, place = self.ids, self._first.get(pair)
        numbers = set(self._later.pop(pair, ()))
        if place is not None:
            numbers.update(self._numbers[self._limits[place] : self._limits[place + 1]].tolist())
        found = {number: times for number in numbers if (times := ids[number].count(pair))}
        if pair[0] == pair[1]:  # three in a row hold it twice
            found = {number: sum(each == pair for each in self._pairs(ids[number])) for number in found}
        return found

    def run(
        self, chooser: _Largest | _Parity, first: int, tokens: int, min_count: int, max_token_bytes: int
    ) -> list[NewToken]:
        """The merges, each applied to the words before the next is chosen.

        Raises:
            UserError: there would be more ids than a string has characters.
        """
        if first + tokens > _MOST_IDS:
            raise UserError(
                f"tokenizer_extension.tokens: {tokens:,} new ids after {first:,} are more than {_MOST_IDS:,}; lower it"
            )
        found: list[NewToken] = []
        refused: set[str] = set()  # for good: the count of a pair only falls
        while len(found) < tokens and (pair := chooser.next()) is not None:
            left, right = map(ord, pair)
            token = self.names[left] + self.names[right]
            if pair in refused or token in self.taken or not self._fits(token, max_token_bytes):
                chooser.forbid()
                continue
            holding = self._holding(pair)
            raw, weighted = (
                sum(map(mul, map(each.__getitem__, holding), holding.values()))
                for each in (self.raw, self.weighted)
            )
            if raw < min_count:
                refused.add(pair)
                chooser.forbid()
                continue
            id_ = first + len(found)
            found.append(NewToken(id_, token, (left, right), weighted, raw))
            self.taken.add(token)
            self.names.append(token)
            self._merge(pair, chr(id_), self.whole.get(token, -1), list(holding), chooser)
        return found

    def _fits(self, token: str, max_token_bytes: int) -> bool:
        return self.bpe.admits(token) and len(self.bpe.bytes_of(token)) <= max_token_bytes

    def _merge(
        self, pair: str, id_: str, whole: int, numbers: list[int], chooser: _Largest | _Parity
    ) -> None:
        """Makes a pair one token in the words that hold it; the word `whole`, if any, becomes that token as it is."""
        ids, later, (left, right) = self.ids, self._later, pair
        if whole >= 0 and pair not in ids[whole]:
            numbers.append(whole)
        single: list[int] = []
        before: defaultdict[str, list[int]] = defaultdict(list)
        after: defaultdict[str, list[int]] = defaultdict(list)
        for number in numbers:
            old = ids[number]
            new = ids[number] = id_ if number == whole else old.replace(pair, id_)
            if len(new) + 1 == len(old) and left != right and number != whole:
                # One place, as almost always: gather its neighbours, so that each pair is changed once for all words.
                single.append(number)
                place = old.index(pair)
                if place:
                    before[old[place - 1]].append(number)
                if place + 2 < len(old):
                    after[old[place + 2]].append(number)
                continue
            gone, came = self._pairs(old), self._pairs(new)
            for each in came:
                if id_ in each:
                    later[each].append(number)
            chooser.moved(gone, came, [number])
            chooser.shortened([number], len(old) - len(new))
        chooser.moved([pair], [], single)
        chooser.shortened(single, 1)
        moves = [(other + left, other + id_, few) for other, few in before.items() if other not in self.bytes]
        moves += [
            (right + other, id_ + other, few) for other, few in after.items() if other not in self.bytes
        ]
        for gone_pair, came_pair, few in moves:
            later[came_pair] += few
            chooser.moved([gone_pair], [came_pair], few)
        chooser.merged()


class _Queue:
    """Pairs, the one with the largest count first, equal ones by their ids. Counts only fall once a pair is in it."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        self.heap = [(-count, pair) for pair, count in counts.items() if count > 0]
        heapq.heapify(self.heap)

    def add(self, pair: str) -> None:
        """Puts in a pair that is new."""
        heapq.heappush(self.heap, (-self.counts[pair], pair))

    def next(self) -> str | None:
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
        self._weighted = simulation.weighted
        self._queue = _Queue(simulation.sums(self._weighted))
        self._fresh: list[str] = []
        self.next, self.forbid = self._queue.next, self._queue.forbid

    def moved(self, gone: Sequence[str], came: Sequence[str], numbers: Sequence[int]) -> None:
        """Notes that each of these words has lost some pairs, and got others."""
        weight, counts = sum(map(self._weighted.__getitem__, numbers)), self._queue.counts
        for pair in gone:
            counts[pair] -= weight
        for pair in came:
            if pair in counts:
                counts[pair] += weight
            else:
                counts[pair] = weight
                self._fresh.append(pair)

    def shortened(self, numbers: Sequence[int], fewer: int) -> None:
        """Notes that each of these words has fewer tokens: nothing that counts here."""

    def merged(self) -> None:
        """Takes up the pairs that the merge has made, now that their counts are whole."""
        for pair in self._fresh:
            self._queue.add(pair)
        self._fresh.clear()


class _Parity:
    """The most frequent pair of the language whose aligned text now costs most tokens an English token."""

    def __init__(self, simulation: _Simulation, words: Words) -> None:
        length = np.ones(len(words.words), np.int64)
        length[simulation.places] = [len(ids) for ids in simulation.ids]
        tokens = np.zeros(len(words.languages), np.int64)
        np.add.at(tokens, words.language, words.aligned * length[words.word])
        self._tokens, self._english = tokens.tolist(), words.english.tolist()
        self._premium = np.where(words.english > 0, tokens / np.maximum(words.english, 1), 0.0)
        self._chosen = -1
        self._queues: dict[int, _Queue] = {}
        self._counts: list[dict[str, int]] = [defaultdict(int) for _ in words.languages]
        self._fresh: list[tuple[int, str]] = []
        self._shorter: set[int] = set()
        # Of each word: language, occurrences, occurrences in aligned text.
        self._languages: list[list[tuple[int, int, int]]] = [[] for _ in simulation.places]
        number_of = np.full(len(words.words), -1)
        number_of[simulation.places] = np.arange(len(simulation.places))
        entries = (number_of[words.word], words.language, words.count, words.aligned)
        for number, language, times, aligned in zip(*(each.tolist() for each in entries), strict=True):
            if number >= 0 and words.english[language]:
                self._languages[number].append((language, times, aligned))
        for pair, numbers in simulation.met():
            for number in numbers:
                for language, times, _ in self._languages[number]:
                    self._counts[language][pair] += times

    def next(self) -> str | None:
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

    def moved(self, gone: Sequence[str], came: Sequence[str], numbers: Sequence[int]) -> None:
        """Notes that each of these words has lost some pairs, and got others."""
        for number in numbers:
            for language, times, _ in self._languages[number]:
                counts = self._counts[language]
                for pair in gone:
                    counts[pair] -= times
                for pair in came:
                    if pair not in counts:
                        self._fresh.append((language, pair))
                    counts[pair] += times

    def shortened(self, numbers: Sequence[int], fewer: int) -> None:
        """Notes that each of these words has fewer tokens."""
        for number in numbers:
            for language, _, aligned in self._languages[number]:
                if aligned:
                    self._tokens[language] -= fewer * aligned
                    self._shorter.add(language)

    def merged(self) -> None:
        """Takes up the pairs that the merge has made, and what its languages now cost."""
        for language, pair in self._fresh:
            if language in self._queues:
                self._queues[language].add(pair)
        for language in self._shorter:
            if self._premium[language] > 0:
                self._premium[language] = self._tokens[language] / self._english[language]
        self._fresh.clear()
        self._shorter.clear()
