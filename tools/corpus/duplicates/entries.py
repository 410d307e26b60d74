"""Hashes of documents in files sorted by hash, and the reading of a range of hashes from all of them in bounded memory.

Each block of documents has one file per kind of hash: where each of 1,024 buckets (the leading ten bits) begins, and the
entries. A range of hashes is read bucket by bucket from all blocks. Where it holds more entries than fit, it is halved
until it does; where a single hash does, its entries are read in the order of ranks, a batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.arrays import read_at
from emma.base.files import atomic_write
from emma.tools.corpus.duplicates.numbering import Numbering

__all__ = [
    "BUCKETS",
    "KINDS",
    "WORKING_BYTES",
    "Entries",
    "Equal",
    "bucket_counts",
    "entries_at_once",
    "plan_ranges",
    "write_entries",
]

_BITS = 10
BUCKETS = 1 << _BITS
"""Buckets of a file; also the most ranges that a kind of hashes is divided into."""

WORKING_BYTES = 144
"""Memory that an entry takes at most while a range of hashes is compared: itself, its rank, the sorted copies, the order,
and the pairs that it gives (measured: docs/benchmarks/corpus.md)."""

_AT_ONCE = 1 << 20
"""Entries of a range where there is memory for more, so that there is work for many processes."""

_CELLS = 4096
_HASH = ("hash", np.uint64)

KINDS = {
    "keys": np.dtype([_HASH, ("second", np.uint64), ("row", np.uint32)]),
    "bands": np.dtype([_HASH, ("row", np.uint32)]),
    "sides": np.dtype([_HASH, ("row", np.uint32)]),
    "paragraphs": np.dtype([_HASH, ("second", np.uint64), ("row", np.uint32), ("line", np.uint32)]),
}
"""Entries of each kind. `row` is that of the chunk; keys and paragraphs have 128 bits, `hash` and `second`."""


def _path(folder: Path, chunk: int, block: int, kind: str) -> Path:
    return folder / f"{chunk:06d}-{block:03d}-{kind}"


def write_entries(folder: Path, chunk: int, block: int, kind: str, **columns: NDArray[Any]) -> None:
    """Writes the entries of a block, sorted by hash."""
    entries = np.empty(len(columns["row"]), KINDS[kind])
    for name, values in columns.items():
        entries[name] = values
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    bounds = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(64 - _BITS)
    offsets = np.append(np.searchsorted(entries["hash"], bounds), len(entries)).astype(np.int64)
    with atomic_write(_path(folder, chunk, block, kind)) as handle:
        handle.write(offsets.tobytes())
        handle.write(entries.tobytes())


def _offsets(path: Path) -> NDArray[np.int64]:
    with path.open("rb") as handle:
        return np.frombuffer(handle.read(8 * (BUCKETS + 1)), np.int64)


def bucket_counts(folder: Path, blocks: Sequence[tuple[int, int]], kind: str) -> NDArray[np.int64]:
    """Entries of each bucket in all blocks together (int64 [BUCKETS])."""
    counts = np.zeros(BUCKETS, np.int64)
    for chunk, block in blocks:
        counts += np.diff(_offsets(_path(folder, chunk, block, kind)))
    return counts


def plan_ranges(counts: NDArray[np.int64], memory: int) -> list[tuple[int, int]]:
    """Ranges of buckets (first, end) whose entries fit into `memory` bytes, where a single bucket does."""
    most = entries_at_once(memory)
    ranges: list[tuple[int, int]] = []
    start, held = 0, 0
    for bucket, count in enumerate(counts.tolist()):
        if held and held + count > most:
            ranges.append((start, bucket))
            start, held = bucket, 0
        held += count
    if held:
        ranges.append((start, BUCKETS))
    return ranges


def entries_at_once(memory: int) -> int:
    """Entries of a range, in `memory` bytes."""
    return min(entries_that_fit(memory), _AT_ONCE)


def entries_that_fit(memory: int) -> int:
    """Entries that can be compared in `memory` bytes."""
    return max(16, memory // WORKING_BYTES)


@dataclass(frozen=True)
class Equal:
    """Entries grouped by hash, and by rank within a group.

    Attributes:
        rank: of each entry's document.
        position: of each entry in its group.
        size: of each entry's group, or a lower bound above any that matters if it is read in batches.
        first: lowest rank of each entry's group.
        line: of paragraphs, the line of the document; else None.
        old: leading entries that an earlier batch has given.
    """

    rank: NDArray[np.int64]
    position: NDArray[np.int64]
    size: NDArray[np.int64]
    first: NDArray[np.int64]
    line: NDArray[np.uint32] | None = None
    old: int = 0


class Entries:
    """Entries of one kind in all blocks, read by ranges of hashes.

    Args:
        folder: of the files.
        kind: of the hashes.
        numbering: of the documents.
        alive: which rows of a chunk's block take part, as a function of chunk and block; None for all of them.
        memory: bytes that may be used.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        numbering: Numbering,
        alive: Callable[[int, int], NDArray[np.bool_]] | None,
        memory: int,
    ) -> None:
        self.folder, self.kind, self.numbering, self.alive = folder, kind, numbering, alive
        self.most = entries_that_fit(memory)
        # Chunk, block and first row of each block, by chunk and row.
        order = np.lexsort((numbering.row, numbering.block, numbering.chunk))
        places = np.stack([numbering.chunk, numbering.block, numbering.row], axis=1)[order]
        new = np.ones(len(places), np.bool_)
        new[1:] = (places[1:, :2] != places[:-1, :2]).any(axis=1)
        self.blocks = [tuple(place) for place in places[new].tolist()]

    def groups(self, start: int, stop: int) -> Iterator[Equal]:
        """Entries of the buckets from `start` to before `stop`, group by group; groups are whole unless one alone does not
        fit."""
        count = 0
        for chunk, block, _ in self.blocks:
            offsets = _offsets(_path(self.folder, chunk, block, self.kind))
            count += int(offsets[stop] - offsets[start])
        shift = 64 - _BITS
        yield from self._interval(start << shift, stop << shift, count)

    def _interval(self, low: int, high: int, count: int) -> Iterator[Equal]:
        if not count:
            return
        if count <= self.most:
            yield from self._whole(low, high)
        elif high - low == 1:
            yield from self._single(low)
        else:
            shift = max(0, ((high - low - 1) // _CELLS).bit_length())
            cells = np.zeros(((high - low - 1) >> shift) + 1, np.int64)
            for _, _, entries in self._read(low, high):
                index = ((entries["hash"] - np.uint64(low)) >> np.uint64(shift)).astype(np.int64)
                cells += np.bincount(index, minlength=len(cells))
            start, held = 0, 0
            for cell, size in enumerate([*cells.tolist(), self.most + 1]):
                if held and held + size > self.most:
                    yield from self._interval(low + (start << shift), min(high, low + (cell << shift)), held)
                    held = 0
                if not held:
                    start = cell
                held += size

    def _read(
        self, low: int, high: int, blocks: Sequence[tuple[int, ...]] | None = None
    ) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Chunk, block and those entries of each block (by default, of all) that take part and lie in the interval."""
        shift = 64 - _BITS
        first, end = low >> shift, ((high - 1) >> shift) + 1
        kind = KINDS[self.kind]
        for chunk, block, start in self.blocks if blocks is None else blocks:
            descriptor = os.open(_path(self.folder, chunk, block, self.kind), os.O_RDONLY)
            try:
                offsets = np.empty(end - first + 1, np.int64)
                read_at(descriptor, offsets, 8 * first)
                entries = np.empty(int(offsets[-1] - offsets[0]), kind)
                begin = 8 * (BUCKETS + 1) + int(offsets[0]) * kind.itemsize
                read_at(descriptor, entries.view(np.uint8), begin)
            finally:
                os.close(descriptor)
            if low != first << shift or high != end << shift:
                inside = (entries["hash"] >= np.uint64(low)) & (entries["hash"] <= np.uint64(high - 1))
                entries = entries[inside]
            if self.alive is not None and len(entries):
                entries = entries[self.alive(chunk, block)[entries["row"] - start]]
            if len(entries):
                yield chunk, block, entries

    def _whole(self, low: int, high: int) -> Iterator[Equal]:
        pieces, ranks = [np.empty(0, KINDS[self.kind])], [np.zeros(0, np.int64)]
        for chunk, _, entries in self._read(low, high):
            pieces.append(entries)
            ranks.append(self.numbering.ranks(chunk, entries["row"]))
        entries, rank = np.concatenate(pieces), np.concatenate(ranks)
        if not len(rank):
            return
        del pieces, ranks
        names = entries.dtype.names or ()
        columns = [name for name in ("line",) if name in names]
        keys = [name for name in ("second", "hash") if name in names]
        order = np.lexsort([*(entries[name] for name in columns), rank, *(entries[name] for name in keys)])
        entries, rank = entries[order], rank[order]
        new = np.ones(len(rank), np.bool_)
        new[1:] = False
        for name in keys:
            new[1:] |= entries[name][1:] != entries[name][:-1]
        edges = np.flatnonzero(new)
        sizes = np.diff(np.append(edges, len(rank)))
        size = np.repeat(sizes, sizes)
        position = np.arange(len(rank)) - np.repeat(edges, sizes)
        line = entries["line"] if columns else None
        yield Equal(rank, position, size, np.repeat(rank[edges], sizes), line)

    def _single(self, value: int) -> Iterator[Equal]:
        """Batches of the entries with one hash, by rank."""
        wide = "second" in (KINDS[self.kind].names or ())
        seconds: set[int] = set()
        for _, _, entries in self._read(value, value + 1) if wide else ():
            seconds.update(np.unique(entries["second"]).tolist())
        for second in sorted(seconds) if wide else [None]:
            count, first = 0, -1
            tail = np.zeros(0, np.int64)
            for rank, line in self._in_order(value, second):
                if not count:
                    first = int(rank[0])
                every = np.concatenate([tail, rank])
                position = np.arange(count - len(tail), count + len(rank))
                count += len(rank)
                large = np.full(len(every), np.iinfo(np.int64).max)
                lines = None if line is None else np.concatenate([np.zeros(len(tail), np.uint32), line])
                yield Equal(every, position, large, np.full(len(every), first), lines, len(tail))
                tail = every[-2:]

    def _in_order(
        self, value: int, second: int | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32] | None]]:
        """Ranks (and lines) of one hash's entries, run by run."""
        read: tuple[tuple[int, int], NDArray[Any]] | None = None
        starts = {(chunk, block): start for chunk, block, start in self.blocks}
        numbering = self.numbering
        for run in range(numbering.runs):
            place = (int(numbering.chunk[run]), int(numbering.block[run]))
            if read is None or read[0] != place:
                found = [each[-1] for each in self._read(value, value + 1, [(*place, starts[place])])]
                read = (place, found[0] if found else np.empty(0, KINDS[self.kind]))
            row = int(numbering.row[run])
            entries = read[1]
            mine = (entries["row"] >= row) & (
                entries["row"] < row + numbering.first[run + 1] - numbering.first[run]
            )
            if second is not None:
                mine &= entries["second"] == np.uint64(second)
            entries = entries[mine]
            if not len(entries):
                continue
            lines = entries["line"] if "line" in (entries.dtype.names or ()) else None
            order = np.lexsort((entries["row"],) if lines is None else (lines, entries["row"]))
            rank = numbering.ranks(place[0], entries["row"][order])
            yield rank, None if lines is None else lines[order]
