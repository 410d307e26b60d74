"""Merges of pairs of tokens in counted words, one after another."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul
from typing import Protocol

import numpy as np

from emma.base.errors import UserError
from emma.tools.tokenizer.bpe import Bpe
from emma.tools.tokenizer.words import Words

__all__ = ["Chooser", "NewToken", "Simulation"]


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


class Chooser(Protocol):
    """What picks the next pair of ids (a string of two), and is told what a merge does to the words."""

    def next(self) -> str | None:
        """The pair to merge, which stays the first; None where none is left."""

    def forbid(self) -> None:
        """Takes the first pair out."""

    def moved(self, gone: Sequence[str], came: Sequence[str], numbers: Sequence[int]) -> None:
        """Notes that each of these words has lost some pairs, and got others."""

    def shortened(self, numbers: Sequence[int], fewer: int) -> None:
        """Notes that each of these words has fewer tokens."""

    def merged(self) -> None:
        """Takes up the pairs that the merge has made, now that all words are told."""


# A word is a string whose characters are ids: strings find and replace pairs faster than any loop here, and sort as their
# ids do.
_MOST_IDS = sys.maxunicode + 1


class Simulation:
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
        self, chooser: Chooser, first: int, tokens: int, min_count: int, max_token_bytes: int
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
            left, right = ord(pair[0]), ord(pair[1])
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
            self._merge(pair, chr(id_), holding, chooser)
        return found

    def _fits(self, token: str, max_token_bytes: int) -> bool:
        return self.bpe.admits(token) and len(self.bpe.bytes_of(token)) <= max_token_bytes

    def _merge(self, pair: str, id_: str, numbers: Iterable[int], chooser: Chooser) -> None:
        """Makes a pair one token in the words that hold it. The word that is the new token is one of them: merges cut it as
        they do within others, so that engines which take words whole (`ignore_merges`) agree."""
        ids, later, left, right = self.ids, self._later, pair[0], pair[1]
        single: list[int] = []
        before: defaultdict[str, list[int]] = defaultdict(list)
        after: defaultdict[str, list[int]] = defaultdict(list)
        for number in numbers:
            old = ids[number]
            new = ids[number] = old.replace(pair, id_)
            if len(new) + 1 == len(old):
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
