"""Token ids of batches of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Encoded", "agree", "edges_of", "interleave", "joined", "ranges"]


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
