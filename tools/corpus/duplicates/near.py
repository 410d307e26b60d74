"""Near copies among candidate pairs: the exact Jaccard index of each pair, and which documents go.

The sets of shingles lie in files and are read pair by pair. Deciding takes one pass over the pairs that are alike, in the
order of ranks, with one bit for each document.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.arrays import read_at
from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.duplicates.bits import Bits
from emma.tools.corpus.duplicates.equal import working_memory
from emma.tools.corpus.duplicates.hashing import NUMBERING
from emma.tools.corpus.duplicates.messages import Messages, Outbox
from emma.tools.corpus.duplicates.numbering import Numbering
from emma.tools.corpus.layout import Part, part_path, read_row_groups
from emma.tools.corpus.minhash import jaccard, shingle_sets, shingles_of
from emma.tools.languages.scripts import script_of

__all__ = ["decide", "greedy", "verify_pairs", "write_sets"]

_TEXTS_AT_ONCE = 512
_OPEN_SETS = 8
_EDGE = np.dtype([("rank", np.int64), ("better", np.int64), ("similarity", np.float64)])
"""A pair of near copies; `rank` is that of the worse one."""


def write_sets(
    corpus: Corpus,
    root: str,
    folder: str,
    chunk: int,
    parts: Sequence[Part],
    slices: Sequence[Sequence[int]],
    files: Sequence[str],
) -> dict[str, Any]:
    """Writes the shingle sets of a chunk's documents that take part in a candidate pair.

    Args:
        corpus: settings.
        root: folder of the corpus.
        folder: of the hashes.
        chunk: number of the chunk.
        parts: its parts.
        slices: first row of each part in the chunk, and the one after the last.
        files: names of the messages that name the documents.
    """
    near = corpus.deduplication.near
    assert near is not None
    numbering = Numbering.read(Path(folder) / NUMBERING)
    wanted = np.zeros(slices[-1][1] if slices else 0, np.bool_)
    for messages in Messages(Path(folder), "candidate", files, numbering).to_chunk(chunk):
        wanted[numbering.places(messages["rank"])[1]] = True
    rows, ends = [np.zeros(0, np.int64)], [0]
    with atomic_write(Path(folder) / f"{chunk:06d}-sets") as handle:
        for part, (start, stop) in zip(parts, slices, strict=True):
            if not wanted[start:stop].any():
                continue
            script = "" if part.kind == "code" else script_of(part.language)
            row = start
            for table in read_row_groups(part_path(Path(root), "filtered", part), ["text"]):
                mine = np.flatnonzero(wanted[row : row + table.num_rows])
                for first in range(0, len(mine), _TEXTS_AT_ONCE):
                    some = mine[first : first + _TEXTS_AT_ONCE]
                    texts = table.column("text").take(some).to_pylist()
                    sets, offsets = shingle_sets(shingles_of(texts, near, script))
                    handle.write(sets.tobytes())
                    rows.append(some + row)
                    ends += (offsets[1:] + ends[-1]).tolist()
                row += table.num_rows
    for name, values in (("rows", np.concatenate(rows)), ("ends", np.array(ends, np.int64))):
        with atomic_write(Path(folder) / f"{chunk:06d}-sets-{name}.npy") as handle:
            np.save(handle, values)
    return {}


class _Sets:
    """The shingle sets of one chunk's documents, read one by one."""

    def __init__(self, folder: Path, chunk: int) -> None:
        self.rows = np.load(folder / f"{chunk:06d}-sets-rows.npy")
        self.ends = np.load(folder / f"{chunk:06d}-sets-ends.npy")
        self.descriptor = os.open(folder / f"{chunk:06d}-sets", os.O_RDONLY)

    def of(self, row: int) -> NDArray[np.uint32]:
        """Sorted shingles of a row."""
        at = int(np.searchsorted(self.rows, row))
        start, stop = self.ends[at : at + 2].tolist()
        values = np.empty(stop - start, np.uint32)
        read_at(self.descriptor, values, 4 * start)
        return values

    def __del__(self) -> None:
        os.close(self.descriptor)


def verify_pairs(corpus: Corpus, folder: str, chunk: int, files: Sequence[str]) -> dict[str, Any]:
    """Writes the pairs of near copies whose worse document is in the chunk, by rank, and how many each run has.

    Args:
        corpus: settings.
        folder: of the hashes.
        chunk: number of the chunk.
        files: names of the messages with the candidates.

    Returns:
        `pairs` that are alike and `candidates` that were compared.
    """
    near = corpus.deduplication.near
    assert near is not None
    numbering = Numbering.read(Path(folder) / NUMBERING)
    messages = Messages(Path(folder), "candidates", files, numbering)
    opened = functools.lru_cache(maxsize=_OPEN_SETS)(functools.partial(_Sets, Path(folder)))
    most = max(16, working_memory(corpus) // 128)
    runs = np.sort(numbering.runs_of(chunk))
    counts, compared = np.zeros(len(runs), np.int64), 0
    with atomic_write(Path(folder) / f"{chunk:06d}-alike") as handle:
        for place, run in enumerate(runs.tolist()):
            for pairs in messages.windows(run, most):
                compared += len(pairs)
                similarity = _similarities(pairs, numbering, opened)
                alike = np.empty(int((similarity >= near.jaccard).sum()), _EDGE)
                chosen = similarity >= near.jaccard
                alike["rank"], alike["better"] = pairs["rank"][chosen], pairs["better"][chosen]
                alike["similarity"] = similarity[chosen]
                handle.write(alike.tobytes())
                counts[place] += len(alike)
    with atomic_write(Path(folder) / f"{chunk:06d}-alike-runs.npy") as handle:
        np.save(handle, np.stack([runs, counts], axis=1))
    return {"pairs": int(counts.sum()), "candidates": compared}


def _similarities(pairs: NDArray[Any], numbering: Numbering, opened: Any) -> NDArray[np.float64]:
    """Jaccard index of each pair."""
    similarity = np.zeros(len(pairs))
    chunks, rows = numbering.places(pairs["better"])
    own_chunks, own_rows = numbering.places(pairs["rank"])
    order = np.lexsort((own_rows, rows, chunks))
    last, better = (-1, -1), np.zeros(0, np.uint32)
    for at in order.tolist():
        place = (int(chunks[at]), int(rows[at]))
        if place != last:
            last, better = place, opened(place[0]).of(place[1])
        similarity[at] = jaccard(better, opened(int(own_chunks[at])).of(int(own_rows[at])))
    return similarity


def greedy(edges: NDArray[Any], gone: Bits) -> NDArray[Any]:
    """Decides on a batch of pairs that are alike: in rank order, best first, a document goes if a better-ranked one that is
    like it stays. So each removed document has a near copy that stays.

    Args:
        edges: pairs (`_EDGE`), by the worse document's rank and then by the better one's; all those of a document.
        gone: which documents are removed; those of this batch are added.

    Returns:
        Of each document that goes, the pair with the best-ranked one that stays.
    """
    if not len(edges):
        return edges
    first = int(edges["rank"][0])
    # A better document before this batch has been decided on; one within it is looked up in turn.
    before = edges["better"] < first
    stays = np.zeros(len(edges), np.bool_)
    stays[before] = ~gone.get(edges["better"][before])
    here: set[int] = set()
    chosen: list[int] = []
    ranks, betters = edges["rank"].tolist(), edges["better"].tolist()
    last = -1
    for at, (rank, better, earlier, open_) in enumerate(
        zip(ranks, betters, before.tolist(), stays.tolist(), strict=True)
    ):
        if rank != last and (open_ if earlier else better not in here):
            last = rank
            here.add(rank)
            chosen.append(at)
    found: NDArray[Any] = edges[chosen]
    gone.set(found["rank"])
    return found


def decide(corpus: Corpus, folder: str, weighted: bool) -> dict[str, Any]:
    """Decides which documents go, in one pass over all pairs that are alike.

    Args:
        corpus: settings.
        folder: of the hashes.
        weighted: whether exact copies of a removed document count as copies of the one that stays.

    Returns:
        `files`: names of the messages' files by kind.
    """
    numbering = Numbering.read(Path(folder) / NUMBERING)
    memory = working_memory(corpus)
    outbox = Outbox(Path(folder), "decided", numbering, max(64, memory // 256))
    with Bits(numbering.documents, memory // 4, Path(folder)) as gone:
        for chunk, run, edges in _in_order(Path(folder), numbering, max(16, memory // 256)):
            found = greedy(edges, gone)
            outbox.put("near", rank=found["rank"], kept=found["better"], similarity=found["similarity"])
            copies = np.ones(len(found), np.int64)
            if weighted and len(found):
                rows = found["rank"] - numbering.first[run] + numbering.row[run]
                copies += np.load(Path(folder) / f"{chunk:06d}-copies.npy", mmap_mode="r")[rows]
            outbox.put("near-copies", rank=found["better"], copies=copies)
    return {"files": outbox.close()}


def _in_order(folder: Path, numbering: Numbering, most: int) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Chunk, run and pairs, by rank, at most about `most` at a time; all pairs of a document at once."""
    for run in range(numbering.runs):
        chunk = int(numbering.chunk[run])
        index = np.load(folder / f"{chunk:06d}-alike-runs.npy")
        place = int(np.searchsorted(index[:, 0], run))
        start, left = int(index[:place, 1].sum()), int(index[place, 1])
        with (folder / f"{chunk:06d}-alike").open("rb") as handle:
            handle.seek(start * _EDGE.itemsize)
            held = np.empty(0, _EDGE)
            while left or len(held):
                count = min(left, most)
                left -= count
                held = np.concatenate([held, np.frombuffer(handle.read(count * _EDGE.itemsize), _EDGE)])
                end = len(held) if not left else int(np.searchsorted(held["rank"], held["rank"][-1]))
                if end:
                    yield chunk, run, held[:end]
                held = held[end:]
