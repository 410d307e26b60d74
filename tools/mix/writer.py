"""Writes a dataset folder: rows in reading order, where samples begin, and plain Megatron indices."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from emma.base.arrays import NpyWriter
from emma.base.files import write_json
from emma.base.threads import in_order
from emma.tools.mix.index import IndexWriter
from emma.tools.mix.layout import ROW, DatasetInfo, Packing, ShardInfo, SourceInfo
from emma.tools.pack.store import Component

__all__ = ["DatasetWriter", "Ordered", "ShardTable", "SourceCounts", "Stream"]


@dataclass(frozen=True)
class ShardTable:
    """Numbers the shards that a mix reads, component by component."""

    components: Sequence[Component]

    def base(self, name: str) -> int:
        """Number of a component's first shard."""
        before = 0
        for component in self.components:
            if component.name == name:
                return before
            before += len(component.shards)
        raise KeyError(name)

    def __len__(self) -> int:
        return sum(len(component.shards) for component in self.components)

    def shards(self) -> Iterator[tuple[Component, int]]:
        """Component of every shard and the shard's number within it, in order."""
        for component in self.components:
            for shard in component.shards:
                yield component, shard.number


class Ordered(Protocol):
    """Rows in their final order, bucket by bucket: counts of every bucket (int64), and the rows (`ROW`) themselves
    with the rows of each sample, or None for one stream."""

    rows: np.ndarray
    units: np.ndarray
    tokens: np.ndarray
    shard_rows: np.ndarray

    def take(self, bucket: int) -> tuple[np.ndarray, np.ndarray | None]: ...


class Stream:
    """One bucket of rows in their final order after which another may come: rows that are all in memory, or those of a
    shuffle with a last row at the end.

    Args:
        rows: `ROW`, after those of `shuffle`.
        shards: number of shards that rows refer to.
        shuffle: what comes before.
    """

    def __init__(self, rows: np.ndarray, shards: int, shuffle: Ordered | None = None) -> None:
        self._last, self._shuffle = rows, shuffle
        self.rows = np.array([len(rows)])
        self.tokens = np.array([rows["tokens"].sum(dtype=np.int64)])
        self.shard_rows = np.bincount(rows["shard"], minlength=shards)[None]
        if shuffle is not None:
            self.rows = np.append(shuffle.rows, self.rows)
            self.tokens = np.append(shuffle.tokens, self.tokens)
            self.shard_rows = np.vstack([shuffle.shard_rows, self.shard_rows])
        self.units = self.rows

    def take(self, bucket: int) -> tuple[np.ndarray, np.ndarray | None]:
        if self._shuffle is not None and bucket < len(self.rows) - 1:
            return self._shuffle.take(bucket)
        return self._last, None


class SourceCounts:
    """Rows, tokens and documents by source, counted from several threads."""

    def __init__(self, sources: int) -> None:
        self.rows, self.tokens, self.documents = (np.zeros(sources, np.int64) for _ in range(3))
        self.cut_documents = 0
        self._lock = threading.Lock()

    def add(self, rows: np.ndarray, first: np.ndarray | None, cut: int) -> None:
        """Counts rows (`ROW`).

        Args:
            rows: to count.
            first: which rows hold the first token of their document (bool); by default all.
            cut: documents among them that are in more than one sample.
        """
        source, size = rows["source"].astype(np.intp), len(self.rows)
        counts = np.bincount(source, minlength=size)
        tokens = np.bincount(source, rows["tokens"], size).astype(np.int64)
        documents = counts if first is None else np.bincount(source[first], minlength=size)
        with self._lock:
            self.rows += counts
            self.tokens += tokens
            self.documents += documents
            self.cut_documents += cut


@dataclass
class DatasetWriter:
    """Writes one dataset folder.

    Args:
        folder: an existing, empty folder.
        packing: how rows fill samples.
        sequence_length: input tokens of a sample.
        shards: the shards that rows refer to.
        sources: component, language and category of the sources that rows refer to.
        fingerprint: of the mix.
        counts: of best-fit samples, whose documents were counted as they were packed.
    """

    folder: Path
    packing: Packing
    sequence_length: int
    shards: ShardTable
    sources: Sequence[tuple[str, str, str | None]]
    fingerprint: str
    counts: SourceCounts | None = None
    _indices: dict[int, IndexWriter] = field(default_factory=dict)

    def write(self, ordered: Ordered) -> DatasetInfo:
        """Writes everything and returns what `dataset.json` says."""
        counts = self.counts or SourceCounts(len(self.sources))
        tokens, rows = int(ordered.tokens.sum()), int(ordered.rows.sum())
        if self.packing == "concatenate":
            # The last token is only a label. A partial last sample is padded.
            labels = max(tokens - 1, 0)
            samples = -(-labels // self.sequence_length)
        else:
            samples = int(ordered.units.sum())
            labels = tokens - samples
        self._open_indices(ordered.shard_rows.sum(axis=0))
        with (
            NpyWriter(self.folder / "rows.npy", ROW, (rows,)) as rows_file,
            NpyWriter(self.folder / "samples.npy", np.dtype("<i8"), (samples + 1, 2)) as samples_file,
        ):

            def write(bucket: int) -> None:
                before = slice(0, bucket)
                at = int(ordered.rows[before].sum())
                mine, sizes = ordered.take(bucket)
                rows_file.put(at, mine)
                if sizes is None:
                    self._stream_samples(samples_file, mine, int(ordered.tokens[before].sum()), at, counts)
                else:
                    begins = at + np.cumsum(sizes, dtype=np.int64) - sizes
                    entries = np.stack([begins, np.zeros(len(sizes), np.int64)], axis=1)
                    samples_file.put(int(ordered.units[before].sum()), entries)
                self._index(mine, ordered.shard_rows[before].sum(axis=0))

            for _ in in_order(write, range(len(ordered.rows))):
                pass
            if self.packing == "best_fit":
                samples_file.put(samples, np.array([[rows, 0]], np.int64))
            else:
                last = ordered.take(len(ordered.rows) - 1)[0][-1]
                samples_file.put(samples, np.array([[rows - 1, int(last["tokens"]) - 1]], np.int64))
        for _ in in_order(IndexWriter.close, self._indices.values()):
            pass
        component = self.shards.components[0]
        info = DatasetInfo(
            folder=self.folder,
            packing=self.packing,
            sequence_length=self.sequence_length,
            samples=samples,
            rows=rows,
            documents=int(counts.documents.sum()),
            cut_documents=counts.cut_documents,
            tokens=tokens,
            label_tokens=labels,
            dtype=component.dtype.name,
            vocab_size=component.vocab_size,
            shards=self._shard_infos(ordered.shard_rows.sum(axis=0)),
            sources=[
                SourceInfo(*source, *map(int, each))
                for source, each in zip(
                    self.sources, zip(counts.documents, counts.rows, counts.tokens, strict=True), strict=True
                )
            ],
            mix_fingerprint=self.fingerprint,
        )
        write_json(self.folder / "dataset.json", info.to_dict())
        return info

    def _stream_samples(
        self, file: NpyWriter, rows: np.ndarray, before: int, rows_before: int, counts: SourceCounts
    ) -> None:
        """One stream, cut every sequence length: sample i begins at token i·L and is labelled by tokens up to
        (i+1)·L."""
        length = self.sequence_length
        tokens = rows["tokens"].astype(np.int64)
        ends = before + np.cumsum(tokens)
        in_sample = (ends - tokens) // length
        counts.add(rows, None, int(np.count_nonzero(in_sample != (ends - 1) // length)))
        begins = np.arange(-(-before // length) * length, int(ends[-1]) if len(ends) else before, length)
        # (The stream's last token is only a label: `write` puts it last, also if a sample would begin with it.)
        index = np.searchsorted(ends, begins, side="right")
        into = begins - (ends[index] - tokens[index])
        file.put(-(-before // length), np.stack([index + rows_before, into], axis=1))

    def _open_indices(self, shard_rows: np.ndarray) -> None:
        """One `.idx` and one link to the `.bin` for every shard that has rows."""
        pairs = enumerate(zip(self._shard_names(), self.shards.shards(), shard_rows.tolist(), strict=True))
        for number, (name, (component, shard), rows) in pairs:
            if rows:
                self._indices[number] = IndexWriter(self.folder / f"{name}.idx", component.dtype, rows)
                target = component.shards[shard].bin_path.resolve()
                (self.folder / f"{name}.bin").symlink_to(os.path.relpath(target, self.folder.resolve()))

    def _index(self, rows: np.ndarray, before: np.ndarray) -> None:
        """Puts rows into the indices of their shards, in the order in which they are read; `before` counts each
        shard's rows in earlier buckets."""
        order = np.argsort(rows["shard"], kind="stable")
        bounds = np.concatenate([[0], np.cumsum(np.bincount(rows["shard"], minlength=len(before)))])
        lengths, offsets = rows["tokens"][order], rows["offset"][order]
        for number, writer in self._indices.items():
            mine = slice(bounds[number], bounds[number + 1])
            if mine.stop > mine.start:
                writer.put(int(before[number]), lengths[mine], offsets[mine])

    def _shard_names(self) -> list[str]:
        return [f"{component.name}-{number:05d}" for component, number in self.shards.shards()]

    def _shard_infos(self, shard_rows: np.ndarray) -> list[ShardInfo]:
        return [
            ShardInfo(name, component.name, number, component.shards[number].bytes, rows)
            for name, (component, number), rows in zip(
                self._shard_names(), self.shards.shards(), shard_rows.tolist(), strict=True
            )
        ]
