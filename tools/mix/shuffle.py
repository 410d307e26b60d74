"""A uniform shuffle of more rows than memory should hold."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from emma.base.arrays import read_at, write_at
from emma.tools.mix.layout import ROW

__all__ = ["BUCKET_ROWS", "Shuffle", "buckets_of"]

BUCKET_ROWS = 1 << 20
"""Approximate rows of a bucket, which is shuffled in memory. What is drawn at random depends on it."""

_SIZE = np.dtype("<i4")


def buckets_of(rows: int, bucket_rows: int) -> int:
    """Number of buckets for about so many rows."""
    return max(1, -(-rows // bucket_rows))


class Shuffle:
    """Puts units in uniformly random order; a unit is a row, or several rows that stay together.

    Every unit goes to a random bucket, then each bucket is permuted: all orders of the units are equally likely. Units may
    be put from several threads, and buckets taken by several. The result depends only on what was put under which number.

    Args:
        scratch: a new file for the rows, removed at the end, and another one beside it for the sizes of units.
        buckets: number of buckets.
        shards: number of shards that rows refer to, to count them by bucket.
        random: random numbers for a purpose: a number under which units are put, or a bucket.
    """

    def __init__(
        self, scratch: Path, buckets: int, shards: int, random: Callable[..., np.random.Generator]
    ) -> None:
        self.buckets = buckets
        self.rows = np.zeros(self.buckets, np.int64)
        self.units = np.zeros(self.buckets, np.int64)
        self.tokens = np.zeros(self.buckets, np.int64)
        self.shard_rows = np.zeros((self.buckets, shards), np.int64)
        self._random = random
        self._paths = [scratch, scratch.with_name(f"{scratch.name}-sizes")]
        self._files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) for path in self._paths]
        self._extents: dict[tuple[int, ...], tuple[int, int, np.ndarray, np.ndarray]] = {}
        self._ends = [0, 0]
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            os.close(file)
            path.unlink()

    def put(self, number: tuple[int, ...], rows: np.ndarray, sizes: np.ndarray | None = None) -> None:
        """Adds units.

        Args:
            number: of this call; no other has it.
            rows: `ROW`, the units one after the other.
            sizes: rows of each unit; by default, each row is one.
        """
        count = len(rows) if sizes is None else len(sizes)
        if not count:
            return
        bucket = self._random("to", *map(str, number)).integers(self.buckets, size=count, dtype=np.uint16)
        order = np.argsort(bucket, kind="stable")
        units = np.bincount(bucket, minlength=self.buckets)
        if sizes is None:
            rows, row_counts = rows[order], units
        else:
            row_counts = np.bincount(bucket, sizes, self.buckets).astype(np.int64)
            rows, sizes = rows[_rows_of(order, sizes)], sizes[order]
        of_sorted = np.repeat(np.arange(self.buckets), row_counts)
        tokens = np.bincount(of_sorted, rows["tokens"], self.buckets).astype(np.int64)
        shards = self.shard_rows.shape[1]
        by_shard = np.bincount(of_sorted * shards + rows["shard"], minlength=self.buckets * shards)
        with self._lock:
            begins = self._ends[0], self._ends[1]
            self._ends[0] += len(rows) * ROW.itemsize
            self._ends[1] += 0 if sizes is None else count * _SIZE.itemsize
            self.rows += row_counts
            self.units += units
            self.tokens += tokens
            self.shard_rows += by_shard.reshape(self.buckets, shards)
            bounds = [np.concatenate([[0], np.cumsum(each)]).astype(np.int32) for each in (row_counts, units)]
            self._extents[number] = (begins[0], begins[1], bounds[0], bounds[1])
        write_at(self._files[0], rows, begins[0])
        if sizes is not None:
            write_at(self._files[1], sizes.astype(_SIZE), begins[1])

    def take(self, bucket: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A bucket's rows in their final order, and the rows of each unit (None if each row is one)."""
        rows = np.empty(int(self.rows[bucket]), ROW)
        sizes = np.empty(int(self.units[bucket]), _SIZE) if self._ends[1] else None
        at = unit_at = 0
        for number in sorted(self._extents):
            begin, size_begin, row_bounds, unit_bounds = self._extents[number]
            start, stop = row_bounds[bucket : bucket + 2].tolist()
            read_at(self._files[0], rows[at : at + stop - start], begin + start * ROW.itemsize)
            at += stop - start
            if sizes is not None:
                start, stop = unit_bounds[bucket : bucket + 2].tolist()
                here = sizes[unit_at : unit_at + stop - start]
                read_at(self._files[1], here, size_begin + start * _SIZE.itemsize)
                unit_at += stop - start
        order = self._random("bucket", str(bucket)).permutation(int(self.units[bucket]))
        if sizes is None:
            return rows[order], None
        return rows[_rows_of(order, sizes)], sizes[order]


def _rows_of(order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Indices of the rows of units in another order."""
    ends = np.cumsum(sizes, dtype=np.int64)
    mine = sizes[order].astype(np.int64)
    ends_after = np.cumsum(mine)
    return np.arange(len(mine) and int(ends_after[-1])) + np.repeat(
        (ends - sizes)[order] - (ends_after - mine), mine
    )
