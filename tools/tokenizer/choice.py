"""Which pair of tokens is merged next.

Parity-aware selection: arXiv 2508.04796.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from emma.tools.tokenizer.merges import Simulation
from emma.tools.tokenizer.words import Words

__all__ = ["Largest", "Parity"]


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


class Largest:
    """The pair with the largest weighted count."""

    def __init__(self, simulation: Simulation) -> None:
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


class Parity:
    """The most frequent pair of the language whose aligned text now costs most tokens an English token."""

    def __init__(self, simulation: Simulation, words: Words) -> None:
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
