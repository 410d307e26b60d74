"""Numbers all documents of a corpus by rank: of equal ones, the lowest rank stays.

The documents of a part that come from one source are a run. Ranks follow the order of sources in the recipe and, within a
source, that of parts and rows. So the rank of a document follows from its run's first rank, and what is held in memory
grows with the number of runs, not with that of documents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.files import atomic_write

__all__ = ["RUN", "Numbering", "number_runs"]

RUN = np.dtype(
    [("row", np.int64), ("rows", np.int64), ("order", np.uint16), ("group", np.int64), ("block", np.int64)]
)
"""A run of a chunk: its first row, its rows, its source's place in the recipe, its group (the index of its part in the
chunk; for pairs, both directions get one group later) and the block of the chunk that holds it."""


@dataclass(frozen=True)
class Numbering:
    """Runs in the order of ranks.

    Attributes:
        first: rank of each run's first document, and the number of all documents (int64 [runs + 1]).
        chunk: of each run.
        block: of each run, within its chunk.
        row: first row of each run in its chunk.
        limit: most documents that may share a side of a pair, by run; 0 for no limit.
    """

    first: NDArray[np.int64]
    chunk: NDArray[np.int64]
    block: NDArray[np.int64]
    row: NDArray[np.int64]
    limit: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """Number of all documents."""
        return int(self.first[-1])

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.chunk)

    @functools.cached_property
    def _of_chunk(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Runs by chunk and row, and where each chunk's begin."""
        order = np.lexsort((self.row, self.chunk))
        chunks = int(self.chunk.max()) + 1 if self.runs else 0
        return order, np.searchsorted(self.chunk[order], np.arange(chunks + 1))

    def runs_of(self, chunk: int) -> NDArray[np.int64]:
        """Runs of a chunk, by row."""
        order, starts = self._of_chunk
        return order[starts[chunk] : starts[chunk + 1]]

    def ranks(self, chunk: int, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Ranks of rows of a chunk."""
        runs = self.runs_of(chunk)
        rows = rows.astype(np.int64)
        run = runs[np.searchsorted(self.row[runs], rows, side="right") - 1]
        return rows - self.row[run] + self.first[run]

    def run_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Run of each rank."""
        return np.searchsorted(self.first, ranks, side="right") - 1

    def places(self, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Chunk and row of each rank."""
        run = self.run_of(ranks)
        return self.chunk[run], ranks - self.first[run] + self.row[run]

    def write(self, path: Path) -> None:
        """Writes the numbering."""
        with atomic_write(path) as handle:
            np.savez(handle, **vars(self))

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def read(path: Path) -> Numbering:
        """Reads a numbering."""
        with np.load(path) as arrays:
            names = ("first", "chunk", "block", "row", "limit")
            return Numbering(**{name: arrays[name] for name in names})


def number_runs(runs: Sequence[NDArray[Any]], limits: Sequence[Sequence[int]]) -> Numbering:
    """The numbering of all chunks' runs.

    Args:
        runs: arrays of `RUN`, one per chunk.
        limits: of each chunk's groups.
    """
    every = np.concatenate([np.zeros(0, RUN), *runs])
    chunk = np.repeat(np.arange(len(runs), dtype=np.int64), [len(each) for each in runs])
    limit = np.array(
        [limits[c][g] for c, g in zip(chunk.tolist(), every["group"].tolist(), strict=True)], np.int64
    )
    order = np.argsort(every["order"], kind="stable")
    first = np.concatenate([[0], np.cumsum(every["rows"][order])])
    return Numbering(first, chunk[order], every["block"][order], every["row"][order], limit[order])
