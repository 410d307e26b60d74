"""What equal hashes mean, by kind: exact copies, pairs to compare, sides of pairs used too often, repeated paragraphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.duplicates.entries import Entries, Equal
from emma.tools.corpus.duplicates.hashing import ALIVE, NUMBERING, read_bits
from emma.tools.corpus.duplicates.messages import Outbox
from emma.tools.corpus.duplicates.numbering import Numbering

__all__ = ["candidate_pairs", "compare_range", "process_memory", "working_memory"]

_ALL_PAIRS = 8
"""In groups up to this size, all pairs of documents are compared."""

_PROCESS_BYTES = 200 << 20
"""Memory of a process that has loaded its libraries and has nothing to do."""


def process_memory() -> int:
    """Bytes of a process that has loaded its libraries."""
    return _PROCESS_BYTES


def working_memory(corpus: Corpus) -> int:
    """Bytes that a task may use beside what the process takes itself."""
    return max(int(corpus.memory_gib * (1 << 30)) - _PROCESS_BYTES, 1) // 2


def candidate_pairs(equal: Equal) -> NDArray[np.int64]:
    """Pairs of documents to compare (pairs × 2, the better-ranked document first).

    In a large group, each document is paired with the best-ranked one and with its two neighbours.
    """
    new = np.arange(len(equal.rank)) >= equal.old
    later = new & (equal.position > 0)
    found = [np.stack([equal.first[later], equal.rank[later]], axis=1)]
    for distance in range(1, _ALL_PAIRS):
        later = new & (equal.position > distance)
        if distance > 2:
            later &= equal.size <= _ALL_PAIRS
        at = np.flatnonzero(later)
        found.append(np.stack([equal.rank[at - distance], equal.rank[at]], axis=1))
    return np.concatenate(found)


def _exact(equal: Equal, numbering: Numbering, outbox: Outbox) -> None:
    copies = equal.position > 0
    copies[: equal.old] = False
    outbox.put("exact", rank=equal.rank[copies], kept=equal.first[copies])
    kept, count = np.unique(equal.first[copies], return_counts=True)
    outbox.put("copies", rank=kept, copies=count)


def _candidates(equal: Equal, numbering: Numbering, outbox: Outbox) -> None:
    pairs = candidate_pairs(equal)
    outbox.put("candidates", rank=pairs[:, 1], better=pairs[:, 0])
    outbox.put("candidate", rank=np.unique(pairs))


def _templated(equal: Equal, numbering: Numbering, outbox: Outbox) -> None:
    limit = numbering.limit[numbering.run_of(equal.rank)]
    over = (limit > 0) & (equal.position >= limit)
    over[: equal.old] = False
    outbox.put("templated", rank=equal.rank[over])


def _paragraphs(equal: Equal, numbering: Numbering, outbox: Outbox) -> None:
    assert equal.line is not None
    copies = equal.position > 0
    copies[: equal.old] = False
    outbox.put("paragraphs", rank=equal.rank[copies], line=equal.line[copies])


_MEANING: dict[str, Callable[[Equal, Numbering, Outbox], None]] = {
    "keys": _exact,
    "bands": _candidates,
    "sides": _templated,
    "paragraphs": _paragraphs,
}


def compare_range(
    corpus: Corpus, folder: str, kind: str, number: int, bounds: Sequence[int], alive: bool
) -> dict[str, Any]:
    """Compares the entries of a range of hashes.

    Args:
        corpus: settings.
        folder: of the hashes.
        kind: of the hashes.
        number: of the range.
        bounds: first bucket, and the one after the last.
        alive: whether copies found before don't take part.

    Returns:
        `files`: names of the messages' files by kind.
    """
    numbering = Numbering.read(Path(folder) / NUMBERING)

    def rows_alive(chunk: int, block: int) -> NDArray[np.bool_]:
        return read_bits(Path(folder), ALIVE, chunk, block)

    memory = working_memory(corpus)
    entries = Entries(Path(folder), kind, numbering, rows_alive if alive else None, memory)
    outbox = Outbox(Path(folder), f"{number:04d}", numbering, max(64, memory // 256))
    for equal in entries.groups(*bounds):
        _MEANING[kind](equal, numbering, outbox)
    return {"files": outbox.close()}
