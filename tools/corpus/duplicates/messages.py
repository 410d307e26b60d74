"""What one phase finds out about documents, in files sorted by rank, for the tasks that look after these documents.

A file begins with an index: how many messages precede those to each run. So the task of a chunk reads only its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.arrays import read_at
from emma.base.files import atomic_write
from emma.tools.corpus.duplicates.numbering import Numbering

__all__ = ["MESSAGES", "Messages", "Outbox"]

_RANK = ("rank", np.int64)

MESSAGES = {
    "exact": np.dtype([_RANK, ("kept", np.int64)]),
    "templated": np.dtype([_RANK]),
    "candidates": np.dtype([_RANK, ("better", np.int64)]),
    "candidate": np.dtype([_RANK]),
    "near": np.dtype([_RANK, ("kept", np.int64), ("similarity", np.float64)]),
    "copies": np.dtype([_RANK, ("copies", np.int64)]),
    "near-copies": np.dtype([_RANK, ("copies", np.int64)]),
    "paragraphs": np.dtype([_RANK, ("line", np.uint32)]),
}
"""Messages to the document of a rank: it is a copy of `kept`; its text is used too often in its pairs; it may be a near copy
of `better`; it takes part in such a pair; it is a near copy; so many documents are its copies; its line is a copy."""

_SPILL = 1 << 20
"""Messages that are held before they are written."""


class Outbox:
    """Collects messages of several kinds and writes them in files of a bounded size, each sorted.

    Args:
        folder: of the files.
        name: of the task; its files are `<kind>-<name>-<number>`.
        numbering: of the documents.
        most: messages of a kind to hold.
    """

    def __init__(self, folder: Path, name: str, numbering: Numbering, most: int = _SPILL) -> None:
        self.folder, self.name, self.numbering, self.most = folder, name, numbering, most
        self._held: dict[str, list[NDArray[Any]]] = {}
        self._count: dict[str, int] = {}
        self.files: dict[str, list[str]] = {}

    def put(self, kind: str, **columns: NDArray[Any]) -> None:
        """Adds messages."""
        messages = np.empty(len(columns["rank"]), MESSAGES[kind])
        for name, values in columns.items():
            messages[name] = values
        if not len(messages):
            return
        self._held.setdefault(kind, []).append(messages)
        self._count[kind] = self._count.get(kind, 0) + len(messages)
        if self._count[kind] >= self.most:
            self._flush(kind)

    def close(self) -> dict[str, list[str]]:
        """Writes the rest; returns the files' names by kind."""
        for kind in sorted(self._held):
            self._flush(kind)
        return self.files

    def _flush(self, kind: str) -> None:
        held = self._held.pop(kind, [])
        self._count[kind] = 0
        if not held:
            return
        tidy = _summed if "copies" in (MESSAGES[kind].names or ()) else _sorted
        messages = tidy(np.concatenate(held))
        files = self.files.setdefault(kind, [])
        files.append(f"{kind}-{self.name}-{len(files):04d}")
        with atomic_write(self.folder / files[-1]) as handle:
            handle.write(np.searchsorted(messages["rank"], self.numbering.first).astype(np.int64).tobytes())
            handle.write(messages.tobytes())


def _sorted(messages: NDArray[Any]) -> NDArray[Any]:
    """Messages by rank and then by the other columns, without repeats."""
    columns = [messages[name] for name in messages.dtype.names or ()]
    messages = messages[np.lexsort(columns[::-1])]
    new = np.ones(len(messages), np.bool_)
    if len(messages):
        new[1:] = False
        for name in messages.dtype.names or ():
            new[1:] |= messages[name][1:] != messages[name][:-1]
    return messages if new.all() else messages[new]


def _summed(messages: NDArray[Any]) -> NDArray[Any]:
    """One message per rank, with the sum of the copies."""
    messages = messages[np.argsort(messages["rank"], kind="stable")]
    first = np.flatnonzero(np.diff(messages["rank"], prepend=-1))
    found = messages[first]
    found["copies"] = np.add.reduceat(messages["copies"], first)
    return found


class Messages:
    """Messages of one kind in any number of files.

    Args:
        folder: of the files.
        kind: of the messages.
        files: their names.
        numbering: of the documents.
    """

    def __init__(self, folder: Path, kind: str, files: Sequence[str], numbering: Numbering) -> None:
        self.folder, self.files, self.numbering = folder, files, numbering
        self.dtype = MESSAGES[kind]

    def _slices(self, run: int) -> Iterator[tuple[int, int, int]]:
        for name in self.files:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
            try:
                bounds = np.empty(2, np.int64)
                read_at(descriptor, bounds, 8 * run)
                yield descriptor, int(bounds[0]), int(bounds[1])
            finally:
                os.close(descriptor)

    def pieces(self, run: int) -> Iterator[NDArray[Any]]:
        """Messages to a run, file by file."""
        begin = 8 * (self.numbering.runs + 1)
        for descriptor, start, stop in self._slices(run):
            if stop > start:
                messages = np.empty(stop - start, self.dtype)
                read_at(descriptor, messages.view(np.uint8), begin + start * self.dtype.itemsize)
                yield messages

    def windows(self, run: int, most: int) -> Iterator[NDArray[Any]]:
        """Messages to a run, sorted, without repeats, at most about `most` at a time."""
        count = sum(stop - start for _, start, stop in self._slices(run))
        parts = -(-count // max(1, most))
        if parts <= 1:
            yield _sorted(np.concatenate([np.empty(0, self.dtype), *self.pieces(run)]))
            return
        low, high = int(self.numbering.first[run]), int(self.numbering.first[run + 1])
        bounds = np.linspace(low, high, parts + 1).astype(np.int64)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            inside = (
                each[slice(*np.searchsorted(each["rank"], [start, stop]))].copy() for each in self.pieces(run)
            )
            yield _sorted(np.concatenate([np.empty(0, self.dtype), *inside]))

    def to_chunk(self, chunk: int) -> Iterator[NDArray[Any]]:
        """Messages to a chunk's documents, run by run and file by file."""
        for run in self.numbering.runs_of(chunk).tolist():
            yield from self.pieces(run)
