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
from emma.tools.mix.catalogue import Catalogue, Part
from emma.tools.mix.plan import PlannedSource
from emma.tools.mix.rounding import Closing, Pass, Rounded, close, round_source
from emma.tools.mix.threads import in_order

__all__ = ["Choice", "Chooser", "Selection", "generator", "select_validation"]

_CELLS = 1 << 20
"""Counters of a component, over all its sources."""
_WINDOW = 256
"""Documents after the one that no longer fits, among which a source looks for one that comes nearer."""
_TOP = np.uint64(2**64 - 1)


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers for one purpose, e.g. the order of a bucket, independent of all other purposes."""
    digest = hashlib.sha256("\x00".join(purpose).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


def _salts(seed: int, component: str, languages: Sequence[str]) -> np.ndarray:
    """Where each language's random numbers begin (uint64)."""
    purposes = (("documents", component, language) for language in languages)
    return np.array([generator(seed, *each).integers(2**64, dtype=np.uint64) for each in purposes], np.uint64)


def _numbers(start: int, stop: int, salts: np.ndarray) -> np.ndarray:
    """Random numbers (uint64) of the documents `start` to `stop`: SplitMix64 (Steele, Lea and Flood 2014), which a
    document's place enters as the counter and its language's salt as the seed."""
    number = np.arange(start, stop, dtype=np.uint64)
    number *= np.uint64(0x9E3779B97F4A7C15)
    number += salts
    number ^= number >> np.uint64(30)
    number *= np.uint64(0xBF58476D1CE4E5B9)
    number ^= number >> np.uint64(27)
    number *= np.uint64(0x94D049BB133111EB)
    number ^= number >> np.uint64(31)
    return number


@dataclass
class _Table:
    """What to read of a component, by language code: whole passes over a source, a threshold below which a document is
    read once more, and single documents that are read once more (sorted)."""

    salts: np.ndarray
    whole: np.ndarray
    below: np.ndarray
    more: np.ndarray

    def times(self, catalogue: Catalogue, part: Part) -> np.ndarray:
        """How often each document of a part is read (int64)."""
        code = catalogue.language[part.start : part.stop]
        again = _numbers(part.start, part.stop, self.salts[code]) < self.below[code]
        times = self.whole[code] + again
        here = slice(*np.searchsorted(self.more, [part.start, part.stop]))
        times[self.more[here] - part.start] += 1
        times[~catalogue.training(part)] = 0
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
    _tables: dict[str, _Table]

    @property
    def tokens(self) -> int:
        """Tokens of all documents, each as often as it is read."""
        return sum(each.tokens for each in self.rounded.values())

    def times(self, catalogue: Catalogue, part: Part) -> np.ndarray:
        """How often each document of a part is read (int64), without the closing source's last document."""
        return self._tables[catalogue.component.name].times(catalogue, part)


class Chooser:
    """Chooses documents for any plan of the same sources.

    Args:
        catalogues: by component.
        seed: seed of the mix.
    """

    def __init__(self, catalogues: Mapping[str, Catalogue], seed: int) -> None:
        self.catalogues = catalogues
        self._salts = {name: _salts(seed, name, each.languages) for name, each in catalogues.items()}
        self._codes = {
            name: {language: code for code, language in enumerate(catalogue.languages)}
            for name, catalogue in catalogues.items()
        }
        self._cells = {name: self._count(name) for name in catalogues}

    def choose(self, planned: Sequence[PlannedSource], total: int | None = None) -> Choice:
        """Chooses the documents of every source.

        A source of T tokens whose target is q·T + r is read whole q times. The rest, r, is filled with its documents
        in a random order, drawn from the seed: each that fits below the target (after the first that doesn't, among the
        next 256), then one more if that comes nearer and the cap allows it. So a source is off by at most half a
        document, unless its cap forbids the nearer side.

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
            if (held := self.held(row.source.key)) != row.source.tokens:
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

    def held(self, key: tuple[str, str]) -> int:
        """Tokens that training may see of a source."""
        component, language = key
        code = self._codes[component].get(language)
        return 0 if code is None else int(self.catalogues[component].counts.tokens[code])

    def _longest(self, key: tuple[str, str]) -> int:
        """Tokens of a source's longest document."""
        return int(self.catalogues[key[0]].counts.longest[self._codes[key[0]][key[1]]])

    def _count(self, name: str) -> tuple[int, np.ndarray, np.ndarray]:
        """Documents and tokens by language and the leading bits of the random number: how many bits, and both counts
        (int64 [languages, 2^bits])."""
        catalogue, salts = self.catalogues[name], self._salts[name]
        size = max(1, len(catalogue.languages))
        bits = min(10, max(2, (_CELLS // size).bit_length() - 1))
        documents = np.zeros(size << bits, np.int64)
        tokens = np.zeros(size << bits, np.int64)

        def count(part: Part) -> tuple[int, np.ndarray, np.ndarray]:
            mine = catalogue.training(part)
            code = catalogue.language[part.start : part.stop]
            cell = (_numbers(part.start, part.stop, salts[code]) >> np.uint64(64 - bits)).astype(np.int64)
            cell += code.astype(np.int64) << bits
            cell, sizes = cell[mine], catalogue.tokens[part.start : part.stop][mine]
            least = int(cell.min()) if len(cell) else 0
            cell -= least
            return least, np.bincount(cell), np.bincount(cell, sizes)

        for least, number, sizes in in_order(count, catalogue.parts):
            documents[least : least + len(number)] += number
            tokens[least : least + len(sizes)] += sizes.astype(np.int64)
        return bits, documents.reshape(size, -1), tokens.reshape(size, -1)

    def _passes(self, targets: Mapping[tuple[str, str], tuple[int, int]]) -> dict[tuple[str, str], Pass]:
        """The last, partial pass over each source: the documents around the place where its target is reached.

        Args:
            targets: target and cap in tokens, by component and language.
        """
        found: dict[tuple[str, str], Pass] = {}
        for name in {key[0] for key in targets}:
            mine = {key: each for key, each in targets.items() if key[0] == name}
            found.update(self._passes_of(name, mine))
        return {key: found[key] for key in targets}

    def _passes_of(
        self, name: str, targets: Mapping[tuple[str, str], tuple[int, int]]
    ) -> Iterator[tuple[tuple[str, str], Pass]]:
        catalogue, salts = self.catalogues[name], self._salts[name]
        bits, documents, tokens = self._cells[name]
        low = np.zeros(len(catalogue.languages), np.uint64)
        high = np.zeros(len(catalogue.languages), np.uint64)
        starts: dict[tuple[str, str], tuple[int, int, int]] = {}
        for key, (target, _) in targets.items():
            code = self._codes[name][key[1]]
            held = self.held(key)
            whole = (target - 1) // held
            rest = target - whole * held
            ends = np.cumsum(tokens[code])
            first = int(np.searchsorted(ends, rest, side="left"))
            after = np.cumsum(documents[code, first + 1 :])
            # Cells until enough documents follow the cell in which the target is reached.
            last = first + 1 + int(np.searchsorted(after, _WINDOW, side="left"))
            low[code] = first << (64 - bits)
            high[code] = _TOP if last + 1 >= 1 << bits else (last + 1) << (64 - bits)
            starts[key] = (code, whole, int(ends[first - 1]) if first else 0)

        def gather(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            code = catalogue.language[part.start : part.stop]
            number = _numbers(part.start, part.stop, salts[code])
            near = np.flatnonzero((number >= low[code]) & (number <= high[code]) & catalogue.training(part))
            near = near[high[code[near]] > 0]
            return code[near], number[near], catalogue.tokens[part.start : part.stop][near], near + part.start

        parts = list(in_order(gather, catalogue.parts))
        codes, numbers, sizes, index = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((numbers, codes))
        codes, numbers, sizes, index = (
            codes[order],
            numbers[order],
            sizes[order].astype(np.int64),
            index[order],
        )
        for key, (mine, whole, before) in starts.items():
            here = slice(*np.searchsorted(codes, [mine, mine + 1]))
            target, cap = targets[key]
            yield (
                key,
                Pass(
                    key,
                    target,
                    cap,
                    self.held(key),
                    whole,
                    before,
                    numbers[here],
                    sizes[here],
                    index[here],
                    _WINDOW,
                ),
            )

    def _tables(self, rounded: Mapping[tuple[str, str], Rounded]) -> dict[str, _Table]:
        """What to read, by component."""
        tables = {}
        for name, catalogue in self.catalogues.items():
            whole = np.zeros(len(catalogue.languages), np.int64)
            below = np.zeros(len(catalogue.languages), np.uint64)
            more = [np.zeros(0, np.int64)]
            for (component, language), each in rounded.items():
                if component == name:
                    code = self._codes[name][language]
                    whole[code], below[code] = each.whole, each.below
                    more.append(each.more)
            tables[name] = _Table(self._salts[name], whole, below, np.sort(np.concatenate(more)))
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
