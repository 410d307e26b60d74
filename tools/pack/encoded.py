"""Token ids of batches of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Bounded", "Encoded", "agree", "edges_of", "interleave", "joined", "ranges"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a batch: `ids` (uint32, all documents concatenated) and `offsets` (int64, documents +
    1)."""

    ids: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.offsets)

    def documents(self, start: int, stop: int) -> Encoded:
        """The documents [start, stop) as a batch."""
        offsets = self.offsets[start : stop + 1]
        return Encoded(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])

    def some(self, rows: np.ndarray) -> Encoded:
        """The documents with these numbers as a batch."""
        lengths = self.lengths[rows]
        return Encoded(self.ids[ranges(self.offsets[rows], lengths)], edges_of(lengths))


class IdSet:
    """Some ids below a limit.

    Args:
        ids: at least one, sorted.
        limit: above all ids.
    """

    def __init__(self, ids: np.ndarray, limit: int) -> None:
        self.limit = limit
        self._first, self._span = np.uint32(ids[0]), np.uint32(ids[-1] - ids[0])
        self._holds = np.zeros(limit, bool)
        self._holds[ids] = True

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where ids (uint32, below the limit) are in the set."""
        # Control tokens have neighbouring ids in most vocabularies: a comparison is cheaper than looking up each.
        places = _places_of((ids - self._first if self._first else ids) <= self._span)
        return places[self._holds[ids[places]]]


def _places_of(flags: np.ndarray) -> np.ndarray:
    """Where flags are set; where few are, in half the time of `np.flatnonzero`, since eight are looked at together."""
    whole = len(flags) & -8
    eights = flags[:whole].view(np.uint64)
    hit = np.flatnonzero(eights)
    within = np.flatnonzero(flags[:whole].reshape(-1, 8)[hit])
    return np.append(hit[within >> 3] * 8 + (within & 7), whole + np.flatnonzero(flags[whole:]))


@dataclass(frozen=True)
class Bounded:
    """Token ids of a batch whose documents have their begin and end of text: `ids` (4 bytes each, all documents
    concatenated), `ends` (int64, where each document ends in them, its end of text included), and whether each has a
    begin of text."""

    ids: np.ndarray
    ends: np.ndarray
    begins: bool

    @classmethod
    def of(
        cls, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, begin: int | None, end: int
    ) -> Bounded:
        """Puts begin and end of text around `lengths` of the ids from `starts` on."""
        begins = begin is not None
        sizes = lengths + 1 + begins
        ends = np.cumsum(sizes)
        whole = np.empty(ends[-1] if len(ends) else 0, np.uint32)
        body = np.ones(len(whole), bool)
        body[ends - 1] = False
        whole[ends - 1] = end
        if begin is not None:
            body[ends - sizes] = False
            whole[ends - sizes] = begin
        whole[body] = ids if int(lengths.sum()) == len(ids) else ids[ranges(starts, lengths)]
        return cls(whole, ends, begins)

    @classmethod
    def found(
        cls, ids: np.ndarray, documents: int, bounds: IdSet, begin: int | None, end: int
    ) -> Bounded | None:
        """What an engine made of documents with their boundaries; None if it did not find these, or others.

        Args:
            ids: uint32.
            documents: how many there are.
            bounds: ids that text must not become, below those of the vocabulary.
            begin: id of the begin of text.
            end: id of the end of text.
        """
        if len(ids) and int(ids.max()) >= bounds.limit:
            return None
        places = bounds.places(ids)
        begins = begin is not None
        ends = places[begins :: 1 + begins] + 1
        if len(places) != documents * (1 + begins) or not (ids[ends - 1] == end).all():
            return None
        if begins:
            first = places[::2]
            if not (ids[first] == begin).all() or first[:1].any() or not np.array_equal(first[1:], ends[:-1]):
                return None
        return cls(ids, ends, begins) if not documents or ends[-1] == len(ids) else None

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, without its boundaries, int64."""
        return np.diff(self.ends, prepend=0) - 1 - self.begins

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each document's text begins in the ids, int64."""
        return self.ends - 1 - self.lengths

    def some(self, rows: np.ndarray) -> Encoded:
        """The documents with these numbers as a batch without boundaries."""
        lengths = self.lengths[rows]
        return Encoded(self.ids[ranges(self.starts[rows], lengths)], edges_of(lengths))


def edges_of(lengths: np.ndarray) -> np.ndarray:
    """Where things of these lengths begin, one after another, and the last one ends; int64."""
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=edges[1:])
    return edges


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All places of ranges, one range after another; int64."""
    edges = edges_of(lengths)
    return np.repeat(starts - edges[:-1], lengths) + np.arange(edges[-1])


def joined(documents: Sequence[np.ndarray]) -> Encoded:
    """One batch from the ids of its documents."""
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(ids) for ids in documents], out=offsets[1:])
    return Encoded(np.concatenate(documents) if documents else np.empty(0, np.uint32), offsets)


def agree(fast: Encoded | None, reference: Encoded) -> bool:
    """Whether a fast engine gave the ids of the reference, document for document."""
    return (
        fast is not None
        and np.array_equal(fast.offsets, reference.offsets)
        and np.array_equal(fast.ids, reference.ids)
    )


def interleave(parts: Mapping[bool, Encoded], which: Sequence[bool] | np.ndarray) -> Encoded:
    """Merges the documents of two batches: document i comes from `parts[which[i]]`."""
    which = np.asarray(which, bool)
    lengths = np.empty(len(which), np.int64)
    for kind, part in parts.items():
        lengths[which == kind] = part.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.empty(offsets[-1], np.uint32)
    of_token = np.repeat(which, lengths)
    for kind, part in parts.items():
        ids[of_token == kind] = part.ids
    return Encoded(ids, offsets)
