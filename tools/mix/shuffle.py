"""A uniform shuffle of more rows than memory should hold.

The random numbers come from the caller: `generator` in `select.py` makes them from the mix's seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from emma.tools.mix.ahead import ahead
from emma.tools.mix.layout import ROW

__all__ = ["BUCKET_ROWS", "shuffled"]

BUCKET_ROWS = 1 << 23
"""Approximate rows of a bucket, which is shuffled in memory (128 MiB)."""


def shuffled(
    rows: Iterable[np.ndarray], expected: int, rng: np.random.Generator, scratch: Path
) -> Iterator[np.ndarray]:
    """Yields all rows in uniformly random order, bucket by bucket.

    Every row is sent to a random bucket (a file below `scratch`), then each bucket is permuted: all orders of
    the rows are equally likely.

    Args:
        rows: arrays of `ROW`.
        expected: approximate number of rows; decides the number of buckets.
        rng: random numbers.
        scratch: an existing folder for the bucket files, which are removed as they are read.
    """
    buckets = max(1, -(-expected // BUCKET_ROWS))
    files = [(scratch / f"bucket-{index:05d}").open("w+b") for index in range(buckets)]
    try:
        for part in ahead(rows):
            for start in range(0, len(part), BUCKET_ROWS):
                _scatter(part[start : start + BUCKET_ROWS], files, rng)
        yield from ahead(_permuted(files, rng))
    finally:
        for file in files:
            file.close()


def _permuted(files: Sequence[IO[bytes]], rng: np.random.Generator) -> Iterator[np.ndarray]:
    for file in files:
        file.seek(0)
        bucket = np.fromfile(file, ROW)
        file.close()
        Path(file.name).unlink()
        yield bucket[rng.permutation(len(bucket))]


def _scatter(part: np.ndarray, files: Sequence[IO[bytes]], rng: np.random.Generator) -> None:
    if len(files) == 1:
        part.tofile(files[0])
        return
    target = rng.integers(len(files), size=len(part), dtype=np.uint16)
    part = part[np.argsort(target, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=len(files)))])
    for index, file in enumerate(files):
        part[bounds[index] : bounds[index + 1]].tofile(file)
