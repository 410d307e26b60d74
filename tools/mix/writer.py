"""Writes a dataset folder: rows in reading order, where samples begin, and plain Megatron indices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from emma.base.files import write_json
from emma.tools.mix.ahead import ahead
from emma.tools.mix.index import IndexWriter
from emma.tools.mix.layout import ROW, DatasetInfo, Packing, ShardInfo, SourceInfo
from emma.tools.mix.packing import best_fit, cut_to_samples
from emma.tools.mix.shuffle import BUCKET_ROWS
from emma.tools.pack.store import Component

__all__ = ["ArrayWriter", "DatasetWriter", "ShardTable"]


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

    def shards(self) -> Iterator[tuple[Component, int]]:
        """Component of every shard and the shard's number within it, in order."""
        for component in self.components:
            for shard in component.shards:
                yield component, shard.number


class ArrayWriter:
    """A `.npy` file that grows row by row; its header is written once its length is known."""

    def __init__(self, path: Path, dtype: np.dtype[Any], columns: int | None = None) -> None:
        self.dtype, self.columns, self.length = dtype, columns, 0
        self._file = path.open("wb")
        self._file.write(self._header(0))

    def _header(self, length: int) -> bytes:
        shape = (length,) if self.columns is None else (length, self.columns)
        fields = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        # 256 bytes hold any length, so the final header fits over the first one.
        text = repr(fields).ljust(256 - 11) + "\n"
        return b"\x93NUMPY\x01\x00" + (len(text)).to_bytes(2, "little") + text.encode("latin1")

    def append(self, array: np.ndarray) -> None:
        """Appends rows."""
        np.ascontiguousarray(array, self.dtype).tofile(self._file)
        self.length += len(array)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._file.flush()
            self._file.seek(0)
            self._file.write(self._header(self.length))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


@dataclass
class DatasetWriter:
    """Writes one dataset folder from rows in their final order.

    Args:
        folder: an existing, empty folder.
        packing: how rows fill samples.
        sequence_length: input tokens of a sample.
        shards: the shards that rows refer to.
        sources: component, language and category of the sources that rows refer to.
        fingerprint: of the mix.
    """

    folder: Path
    packing: Packing
    sequence_length: int
    shards: ShardTable
    sources: Sequence[tuple[str, str, str | None]]
    fingerprint: str
    _shard_rows: np.ndarray = field(init=False)
    _source_rows: np.ndarray = field(init=False)
    _source_tokens: np.ndarray = field(init=False)
    _source_documents: np.ndarray = field(init=False)
    _cut_documents: int = 0

    def __post_init__(self) -> None:
        self._shard_rows = np.zeros(sum(1 for _ in self.shards.shards()), np.int64)
        self._source_rows = np.zeros(len(self.sources), np.int64)
        self._source_tokens = np.zeros(len(self.sources), np.int64)
        self._source_documents = np.zeros(len(self.sources), np.int64)

    def write(
        self, buckets: Iterable[np.ndarray], samples: int | None, total: Callable[[], int] | None = None
    ) -> DatasetInfo:
        """Writes everything and returns what `dataset.json` says.

        Args:
            buckets: rows (`ROW`) in order.
            samples: exact number of samples; None: as many as the rows make, the last one padded
                (concatenation only).
            total: returns the tokens of all rows once the first bucket has been read; with `samples` and
                concatenation, the excess is cut off the last row.
        """
        if self.packing == "concatenate":

            def surplus() -> int:
                if samples is None or total is None:
                    return 0
                return total() - (samples * self.sequence_length + 1)

            count, labels, rows = self._concatenate(_cut_last(buckets, surplus))
        else:
            count, labels, rows = self._best_fit(buckets, samples)
        self._write_indices()
        component = self.shards.components[0]
        info = DatasetInfo(
            folder=self.folder,
            packing=self.packing,
            sequence_length=self.sequence_length,
            samples=count,
            rows=rows,
            documents=int(self._source_documents.sum()),
            cut_documents=self._cut_documents,
            tokens=int(self._source_tokens.sum()),
            label_tokens=labels,
            dtype=component.dtype.name,
            vocab_size=component.vocab_size,
            shards=self._shard_infos(),
            sources=[
                SourceInfo(*source, *map(int, counts))
                for source, counts in zip(
                    self.sources,
                    zip(self._source_documents, self._source_rows, self._source_tokens, strict=True),
                    strict=True,
                )
            ],
            mix_fingerprint=self.fingerprint,
        )
        write_json(self.folder / "dataset.json", info.to_dict())
        return info

    def _count(self, rows: np.ndarray, begins_document: np.ndarray | None = None) -> None:
        """Counts rows; `begins_document` marks those that hold the first token of their document (by default
        all)."""
        self._shard_rows += np.bincount(rows["shard"], minlength=len(self._shard_rows))
        source = rows["source"].astype(np.intp)  # one copy for all counts
        counts = np.bincount(source, minlength=len(self.sources))
        self._source_rows += counts
        tokens = np.bincount(source, rows["tokens"], len(self.sources))
        self._source_tokens += tokens.astype(np.int64)
        if begins_document is not None:
            counts = np.bincount(source[begins_document], minlength=len(self.sources))
        self._source_documents += counts

    def _concatenate(self, buckets: Iterable[np.ndarray]) -> tuple[int, int, int]:
        """One stream, cut every sequence length: sample i begins at token i·L and is labelled by tokens up to
        (i+1)·L.

        `samples.npy` ends with the stream's last token, which is only a label.
        """
        length, before, rows_before, end = self.sequence_length, 0, 0, (0, 0)
        with (
            ArrayWriter(self.folder / "rows.npy", ROW) as rows_file,
            ArrayWriter(self.folder / "samples.npy", np.dtype("<i8"), 2) as samples_file,
        ):
            for rows in buckets:
                if not len(rows):
                    continue
                rows_file.append(rows)
                self._count(rows)
                tokens = rows["tokens"].astype(np.int64)
                ends = before + np.cumsum(tokens)
                in_sample = (ends - tokens) // length
                self._cut_documents += int(np.count_nonzero(in_sample != (ends - 1) // length))
                begins = np.arange(-(-before // length) * length, int(ends[-1]), length)
                index = np.searchsorted(ends, begins, side="right")
                into = begins - (ends[index] - tokens[index])
                samples_file.append(np.stack([index + rows_before, into], axis=1))
                before, rows_before = int(ends[-1]), rows_before + len(rows)
                end = (rows_before - 1, int(rows["tokens"][-1]) - 1)
            # The last token is only a label. If a sample would begin with it, that entry already closes the
            # list.
            if before == 0 or (before - 1) % length:
                samples_file.append(np.array([end], np.int64))
            count = samples_file.length - 1
        return count, max(before - 1, 0), rows_before

    def _best_fit(self, buckets: Iterable[np.ndarray], samples: int | None) -> tuple[int, int, int]:
        """Packs each bucket separately; bins within a bucket and rows within a bin stay in random order."""
        capacity = self.sequence_length + 1
        itemsize = self.shards.components[0].dtype.itemsize
        count, labels, rows_before = 0, 0, 0
        with (
            ArrayWriter(self.folder / "rows.npy", ROW) as rows_file,
            ArrayWriter(self.folder / "samples.npy", np.dtype("<i8"), 2) as samples_file,
        ):
            for bucket in buckets:
                if not len(bucket) or count == samples:
                    continue
                rows, first, cut = cut_to_samples(bucket, capacity, itemsize)
                bins, made = best_fit(rows["tokens"].astype(np.int64), capacity)
                keep = made if samples is None else min(made, samples - count)
                rank = _bin_order(bins, rows["tokens"], made, keep)
                place = rank[bins]
                order = np.argsort(place, kind="stable")
                order = order[: int((place < keep).sum())]
                rows = rows[order]
                self._cut_documents += int(np.count_nonzero(cut[order]))
                sizes = np.bincount(place[order], minlength=keep)
                rows_file.append(rows)
                self._count(rows, first[order])
                begins = rows_before + np.concatenate([[0], np.cumsum(sizes)[:-1]])
                samples_file.append(np.stack([begins, np.zeros(keep, np.int64)], axis=1))
                labels += int(rows["tokens"].sum(dtype=np.int64)) - keep
                count, rows_before = count + keep, rows_before + len(rows)
            samples_file.append(np.array([[rows_before, 0]], np.int64))
        return count, labels, rows_before

    def _shard_names(self) -> list[str]:
        return [f"{component.name}-{number:05d}" for component, number in self.shards.shards()]

    def _shard_infos(self) -> list[ShardInfo]:
        return [
            ShardInfo(name, component.name, number, component.shards[number].bytes, int(rows))
            for name, (component, number), rows in zip(
                self._shard_names(), self.shards.shards(), self._shard_rows, strict=True
            )
        ]

    def _write_indices(self) -> None:
        """One `.idx` and one link to the `.bin` for every shard that has rows, in the order in which they are
        read."""
        writers: dict[int, IndexWriter] = {}
        pairs = enumerate(zip(self._shard_names(), self.shards.shards(), self._shard_rows, strict=True))
        for number, (name, (component, shard), rows) in pairs:
            if rows:
                writers[number] = IndexWriter(self.folder / f"{name}.idx", component.dtype, int(rows))
                target = component.shards[shard].bin_path.resolve()
                (self.folder / f"{name}.bin").symlink_to(os.path.relpath(target, self.folder.resolve()))
        for bounds, lengths, offsets in ahead(self._by_shard()):
            for number, writer in writers.items():
                mine = slice(bounds[number], bounds[number + 1])
                if mine.stop > mine.start:
                    writer.append(lengths[mine], offsets[mine])
        for writer in writers.values():
            writer.close()

    def _by_shard(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Where each shard's rows begin, then lengths and offsets of all rows, grouped by shard."""
        rows_file = np.load(self.folder / "rows.npy", mmap_mode="r")
        for start in range(0, len(rows_file), BUCKET_ROWS):
            rows = rows_file[start : start + BUCKET_ROWS]
            shard = np.array(rows["shard"])
            order = np.argsort(shard, kind="stable")
            counts = np.bincount(shard, minlength=len(self._shard_rows))
            bounds = np.concatenate([[0], np.cumsum(counts)])
            yield bounds, np.array(rows["tokens"])[order], np.array(rows["offset"])[order]


def _bin_order(bins: np.ndarray, tokens: np.ndarray, made: int, keep: int) -> np.ndarray:
    """Place of each bin: in the order of their first rows, which is random; with too many bins, the emptiest
    go last."""
    first = np.full(made, len(bins), np.int64)
    np.minimum.at(first, bins, np.arange(len(bins)))
    if keep < made:
        filled = np.bincount(bins, tokens, made)
        dropped = np.argsort(filled, kind="stable")[: made - keep]
        first[dropped] += len(bins)
    rank = np.empty(made, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(made)
    return rank


def _cut_last(buckets: Iterable[np.ndarray], surplus: Callable[[], int]) -> Iterator[np.ndarray]:
    """Rows in order; the first one longer than `surplus` is held back to end the stream without its last
    `surplus` tokens. (`surplus` is less than some row's length, and known once the first bucket has been
    read.)"""
    last: np.ndarray | None = None
    cut = 0
    for bucket in buckets:
        cut = cut or surplus()
        if cut and last is None:
            long = np.flatnonzero(bucket["tokens"] > cut)[:1]
            if len(long):
                last = bucket[long]
                bucket = np.delete(bucket, long)
        yield bucket
    if last is not None:
        last["tokens"] -= cut
        yield last
