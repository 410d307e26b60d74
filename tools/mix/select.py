"""Chooses the documents of a mix: each source by itself to the nearest document, the whole to the token.

Every source has its documents in a random order: by a 64-bit number that is computed from the seed, the source's name and
the document's place in its component. No list of documents is held: a document is in the mix if its number is below its
source's threshold, so memory does not grow with the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emma.base.errors import UserError
from emma.base.threads import in_order
from emma.tools.mix.catalogue import Catalogue, Part
from emma.tools.mix.plan import PlannedSource
from emma.tools.mix.rounding import Closing, Pass, Rounded, close, round_source

__all__ = [
    "Choice",
    "Chooser",
    "Reads",
    "Selection",
    "generator",
    "numbers_of",
    "salts_of",
    "select_validation",
]

_CELLS = 1 << 20
"""Counters of a component, over all its sources."""
_TOP = np.uint64(2**64 - 1)


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers for one purpose, e.g. the order of a bucket, independent of all other purposes."""
    digest = hashlib.sha256("\x00".join(purpose).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


def salts_of(seed: int, component: str, languages: Sequence[str]) -> np.ndarray:
    """Where each language's random numbers begin (uint64)."""
    purposes = (("documents", component, language) for language in languages)
    return np.array([generator(seed, *each).integers(2**64, dtype=np.uint64) for each in purposes], np.uint64)


def numbers_of(part: Part, salts: np.ndarray, reading: int = 0) -> np.ndarray:
    """Random numbers (uint64) of a part's documents: SplitMix64 (Steele, Lea and Flood 2014), which a document's place
    enters as the counter and its language's salt as the seed. Each further reading of a document has another number: its
    counter is 2^40 higher."""
    number = np.arange(part.start, part.stop, dtype=np.uint64)
    number += np.uint64(reading << 40)
    number *= np.uint64(0x9E3779B97F4A7C15)
    number += salts
    number ^= number >> np.uint64(30)
    number *= np.uint64(0xBF58476D1CE4E5B9)
    number ^= number >> np.uint64(27)
    number *= np.uint64(0x94D049BB133111EB)
    number ^= number >> np.uint64(31)
    return number


@dataclass
class Reads:
    """What to read of a component, by language code: whole passes over a source, and a threshold below which a document of
    at most `longest` tokens is read once more. A document that is rehydrated is several: it has several random numbers."""

    salts: np.ndarray
    whole: np.ndarray
    below: np.ndarray
    longest: np.ndarray

    def times(self, catalogue: Catalogue, part: Part) -> np.ndarray:
        """How often each document of a part is read (int64)."""
        code = catalogue.language[part.start : part.stop]
        fits = catalogue.tokens[part.start : part.stop] <= self.longest[code]
        times = np.zeros(len(code), np.int64)
        for reading in range(catalogue.most_times(part)):
            again = fits & (numbers_of(part, self.salts[code], reading) < self.below[code])
            times += (self.whole[code] + again) * catalogue.training(part, reading)
        return times


@dataclass(frozen=True)
class Choice:
    """The documents of a mix.

    Attributes:
        rounded: what each source gives, by component and language.
        closing: the source that makes up the total, and its last document, which is read in part; None if the
            choice has no exact total.
    """

    rounded: dict[tuple[str, str], Rounded]
    closing: Closing | None
    reads: dict[str, Reads]

    @property
    def tokens(self) -> int:
        """Tokens of all documents, each as often as it is read."""
        return sum(each.tokens for each in self.rounded.values())

    def times(self, catalogue: Catalogue, part: Part) -> np.ndarray:
        """How often each document of a part is read (int64), without the closing source's last document."""
        return self.reads[catalogue.component.name].times(catalogue, part)


class Chooser:
    """Chooses documents for any plan of the same sources.

    Args:
        catalogues: by component.
        seed: seed of the mix.
    """

    def __init__(self, catalogues: Mapping[str, Catalogue], seed: int) -> None:
        self.catalogues = catalogues
        self._salts = {name: salts_of(seed, name, each.languages) for name, each in catalogues.items()}
        self._codes = {
            name: {language: code for code, language in enumerate(catalogue.languages)}
            for name, catalogue in catalogues.items()
        }
        self._cells = {name: self._count(name) for name in catalogues}

    def choose(self, planned: Sequence[PlannedSource], total: int | None = None) -> Choice:
        """Chooses the documents of every source.

        A source of T tokens whose target is q·T + r is read whole q times. The rest, r, is filled with its documents
        in a random order, drawn from the seed: as many as come nearest to the target without exceeding the source's cap.
        Documents longer than 2·r cannot come nearer than none, and are passed over. So a source is off by at most
        half a document, unless its cap forbids the nearer side or its other documents don't suffice.

        With a `total`, one source takes what the others' roundings leave, to the token: it reads its last document in
        part. It is the largest one that this keeps within half of its longest document. If there is none, sources that
        are nearly as near on their target's other side are put there, until there is one; they are off by less than one
        of their documents.

        Args:
            planned: the plan's sources.
            total: tokens that all sources together must give.

        Raises:
            UserError: the caps keep the sources from reaching `total`; a source holds other tokens than its component
                counts.
        """
        members = [row for row in planned if row.target_tokens > 0]
        for row in members:
            if (held := self._distinct(row.source.key)) != row.source.tokens:
                raise UserError(
                    f"{row.source.component}/{row.source.language}: its documents hold {held:,} tokens for training, "
                    f"but the plan counts {row.source.tokens:,}; run `emma pack verify`"
                )
        found = self._passes({row.source.key: (row.target_tokens, row.cap_tokens) for row in members})
        rounded = {key: round_source(each) for key, each in found.items()}
        closing = None
        if total is not None:
            longest = {key: self._longest(key) for key in rounded}
            closing, again = close(found, rounded, longest, total, self._passes)
            rounded.update(again)
        return Choice(rounded, closing, self._tables(rounded))

    def _distinct(self, key: tuple[str, str]) -> int:
        """Tokens that training may see of a source."""
        component, language = key
        code = self._codes[component].get(language)
        return 0 if code is None else int(self.catalogues[component].counts.tokens[code])

    def held(self, key: tuple[str, str]) -> int:
        """Tokens of a pass over a source: the same, documents that are rehydrated as often as they are read in it."""
        component, language = key
        code = self._codes[component].get(language)
        return 0 if code is None else int(self._cells[component][1][code].sum())

    def _longest(self, key: tuple[str, str]) -> int:
        """Tokens of a source's longest document."""
        return int(self.catalogues[key[0]].counts.longest[self._codes[key[0]][key[1]]])

    def _count(self, name: str, longest: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Documents and tokens by language and the leading bits of the random number (int64 [languages, 2^bits]).

        Args:
            name: of the component.
            longest: tokens of the longest document that counts, by language code (0: none).
        """
        catalogue, salts = self.catalogues[name], self._salts[name]
        size, bits = max(1, len(catalogue.languages)), self._bits(name)
        documents = np.zeros(size << bits, np.int64)
        tokens = np.zeros(size << bits, np.int64)

        def count(task: tuple[Part, int]) -> tuple[int, np.ndarray, np.ndarray]:
            part, reading = task
            mine = catalogue.training(part, reading)
            code, sizes = catalogue.language[part.start : part.stop], catalogue.tokens[part.start : part.stop]
            if longest is not None:
                mine &= sizes <= longest[code]
            if not mine.any():
                return 0, documents[:0], tokens[:0]
            cell = (numbers_of(part, salts[code], reading) >> np.uint64(64 - bits)).astype(np.int64)
            cell += code.astype(np.int64) << bits
            cell = cell[mine]
            least = int(cell.min())
            cell -= least
            return least, np.bincount(cell), np.bincount(cell, sizes[mine])

        for least, number, sums in in_order(count, catalogue.readings):
            documents[least : least + len(number)] += number
            tokens[least : least + len(sums)] += sums.astype(np.int64)
        return documents.reshape(size, -1), tokens.reshape(size, -1)

    def _bits(self, name: str) -> int:
        size = max(1, len(self.catalogues[name].languages))
        return min(10, max(2, (_CELLS // size).bit_length() - 1))

    def _passes(
        self, targets: Mapping[tuple[str, str], tuple[int, int]], *, everything: bool = False
    ) -> dict[tuple[str, str], Pass]:
        """The last, partial pass over each source: the documents around the place where its target is reached.

        Args:
            targets: target and cap in tokens, by component and language.
            everything: don't pass over documents that are more than twice what is to be filled.
        """
        found: dict[tuple[str, str], Pass] = {}
        for name in {key[0] for key in targets}:
            mine = {key: each for key, each in targets.items() if key[0] == name}
            found.update(self._passes_of(name, mine, everything))
        return {key: found[key] for key in targets}

    def _passes_of(
        self, name: str, targets: Mapping[tuple[str, str], tuple[int, int]], everything: bool
    ) -> Iterator[tuple[tuple[str, str], Pass]]:
        catalogue, salts, bits = self.catalogues[name], self._salts[name], self._bits(name)
        size = len(catalogue.languages)
        longest = np.zeros(size, np.int64)
        whole = {}
        for key, (target, _) in targets.items():
            held, code = self.held(key), self._codes[name][key[1]]
            whole[key] = (target - 1) // held
            # (Twice as long would be as far off as none.)
            rest = target - whole[key] * held
            longest[code] = self._longest(key) if everything else min(2 * rest - 1, self._longest(key))
        documents, tokens = self._cells[name]
        if (limited := (longest > 0) & (longest < catalogue.counts.longest)).any():
            fewer = self._count(name, np.where(limited, longest, 0))
            documents, tokens = (
                np.where(limited[:, None], *pair) for pair in zip(fewer, self._cells[name], strict=True)
            )
        low, high = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        before = {}
        for key, (target, _) in targets.items():
            code = self._codes[name][key[1]]
            ends = np.cumsum(tokens[code])
            rest = target - whole[key] * self.held(key)
            first = min(int(np.searchsorted(ends, rest, side="left")), len(ends) - 1)
            # Up to the next cell that has any document.
            after = np.flatnonzero(documents[code, first + 1 :])
            last = first + 1 + int(after[0]) if len(after) else len(ends) - 1
            low[code] = first << (64 - bits)
            high[code] = _TOP if last == len(ends) - 1 else (last + 1) << (64 - bits)
            before[key] = int(ends[first - 1]) if first else 0

        def gather(task: tuple[Part, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            part, reading = task
            code, sizes = catalogue.language[part.start : part.stop], catalogue.tokens[part.start : part.stop]
            number = numbers_of(part, salts[code], reading)
            near = (
                (number >= low[code])
                & (number <= high[code])
                & (sizes <= longest[code])
                & catalogue.training(part, reading)
            )
            mine = np.flatnonzero(near)
            return code[mine], number[mine], sizes[mine], mine + part.start

        parts = list(in_order(gather, catalogue.readings))
        codes, numbers, sizes, index = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((numbers, codes))
        codes, numbers, sizes, index = (
            codes[order],
            numbers[order],
            sizes[order].astype(np.int64),
            index[order],
        )
        for key, (target, cap) in targets.items():
            code = self._codes[name][key[1]]
            here = slice(*np.searchsorted(codes, [code, code + 1]))
            around = (numbers[here], sizes[here], index[here])
            yield (
                key,
                Pass(key, target, cap, self.held(key), whole[key], int(longest[code]), before[key], *around),
            )

    def _tables(self, rounded: Mapping[tuple[str, str], Rounded]) -> dict[str, Reads]:
        """What to read, by component."""
        tables = {}
        for name, catalogue in self.catalogues.items():
            size = len(catalogue.languages)
            whole, below, longest = (
                np.zeros(size, np.int64),
                np.zeros(size, np.uint64),
                np.zeros(size, np.int64),
            )
            for (component, language), each in rounded.items():
                if component == name:
                    code = self._codes[name][language]
                    whole[code], below[code], longest[code] = each.whole, each.below, each.longest
            tables[name] = Reads(self._salts[name], whole, below, longest)
        return tables


@dataclass(frozen=True)
class Selection:
    """Documents of one source: indices into its component's catalogue (int64)."""

    component: str
    language: str
    documents: np.ndarray


def select_validation(
    catalogues: Mapping[str, Catalogue], targets: Mapping[tuple[str, str], int], seed: int
) -> Iterator[Selection]:
    """Yields the documents of a validation group: from each source, in a random order, as many as fit its
    target (at least one)."""
    for (component, language), target in targets.items():
        catalogue = catalogues[component]
        documents = catalogue.validation_of(language)
        sizes = catalogue.tokens[documents].astype(np.int64)
        order = generator(seed, "validation", component, language).permutation(len(documents))
        count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), target, side="right")))
        yield Selection(component, language, documents[np.sort(order[:count])])
