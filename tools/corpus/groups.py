"""Second phase of deduplication: finds copies within groups of documents by the first phase's hashes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus, NearDuplicates
from emma.tools.corpus.duplicates import Copies, candidate_pairs, exact_copies, near_copies, over_used
from emma.tools.corpus.hashing import ChunkHashes, Slice, searched_kind
from emma.tools.corpus.layout import PartWriter, part_path, read_row_groups
from emma.tools.corpus.minhash import shingle_sets, shingles_of
from emma.tools.corpus.thresholds import thresholds_for
from emma.tools.languages.scripts import script_of

__all__ = ["CLUSTER_SCHEMA", "RULES", "Group", "find_copies"]

RULES = ("", "exact_duplicate", "near_duplicate", "templated", "duplicate_paragraphs")
"""Rules; their indices are the numbers in the decisions, and 0 keeps a document."""

CLUSTER_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "language", "rule")),
        *((name, pa.string()) for name in ("removed_id", "removed_source", "kept_id", "kept_source")),
        ("similarity", pa.float64()),
    ]
)
"""Columns of `deduplicated/clusters/part-NNNNN.parquet`, with one row per removed copy and its original."""

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class Group:
    """Documents to compare with each other."""

    kind: str
    language: str
    slices: list[Slice]

    @property
    def rows(self) -> int:
        """Number of documents in the group."""
        return sum(piece.rows for piece in self.slices)


def find_copies(
    corpus: Corpus, root: str, folder: str, number: int, groups: Sequence[Group]
) -> dict[str, Any]:
    """Finds the copies within groups.

    Writes the decisions to `folder/copies-NUMBER.npz` and the clusters to a part of `deduplicated/clusters`.

    Returns:
        `parts`, with the record of the clusters' part.
    """
    decisions: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("chunk", "row", "rule", "cut_chunk", "cut_position")
    }
    path = Path(root) / "deduplicated" / "clusters" / f"part-{number:05d}.parquet"
    with PartWriter(path, CLUSTER_SCHEMA, ("removed_id", "kept_id")) as writer:
        for group in groups:
            _Comparison(corpus, Path(root), Path(folder), group).run(decisions, writer)
    kinds = {
        "chunk": np.int64,
        "row": np.int64,
        "rule": np.uint8,
        "cut_chunk": np.int64,
        "cut_position": np.int64,
    }
    arrays: dict[str, Any] = {
        name: np.concatenate([np.zeros(0, kinds[name]), *pieces]) for name, pieces in decisions.items()
    }
    with atomic_write(Path(folder) / f"copies-{number:06d}.npz") as handle:
        np.savez(handle, **arrays)
    return {"parts": [writer.record(Path(root) / "deduplicated")]}


class _Comparison:
    """The comparison within one group; positions number the documents of its slices consecutively."""

    def __init__(self, corpus: Corpus, root: Path, folder: Path, group: Group) -> None:
        self.corpus, self.root, self.folder, self.group = corpus, root, folder, group
        self.hashes = {chunk: ChunkHashes(folder, chunk) for chunk in {piece.chunk for piece in group.slices}}
        self.starts = np.cumsum([0, *(piece.rows for piece in group.slices)])
        orders = np.concatenate([np.asarray(array, np.int64) for array in self._arrays("orders")])
        self.ranks = orders * len(orders) + np.arange(len(orders))
        self.memory = int(corpus.memory_gib * (1 << 30) / 2)

    def _arrays(self, name: str) -> Iterator[NDArray[Any]]:
        for piece in self.group.slices:
            yield getattr(self.hashes[piece.chunk], name)[piece.start : piece.stop]

    def run(self, decisions: dict[str, list[NDArray[Any]]], writer: PartWriter) -> None:
        rule = np.zeros(len(self.ranks), np.uint8)
        clusters = []
        if self.corpus.deduplication.exact:
            copies = exact_copies(lambda: self._arrays("keys"), self.ranks, self.memory)
            rule[copies.removed] = RULES.index("exact_duplicate")
            clusters.append(("exact_duplicate", copies))
        near = searched_kind(self.corpus, self.group.kind)
        if near is not None:
            copies = self._near(near, rule)
            rule[copies.removed] = RULES.index("near_duplicate")
            clusters.append(("near_duplicate", copies))
        if self.group.kind == "parallel":
            self._templated(rule)
        removed = np.flatnonzero(rule)
        chunks, rows = self._places(removed)
        decisions["chunk"].append(chunks)
        decisions["row"].append(rows)
        decisions["rule"].append(rule[removed])
        if self.corpus.deduplication.paragraphs and self.group.kind != "parallel":
            self._paragraphs(rule, decisions)
        self._write_clusters(clusters, writer)

    def _places(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Chunk of each position, and row within that chunk."""
        piece = np.searchsorted(self.starts, positions, side="right") - 1
        chunks = np.array([s.chunk for s in self.group.slices], np.int64)
        offsets = np.array([s.start for s in self.group.slices], np.int64) - self.starts[:-1]
        return chunks[piece], positions + offsets[piece]

    def _near(self, near: NearDuplicates, rule: NDArray[np.uint8]) -> Copies:
        long = np.concatenate(list(self._arrays("long")))
        searched = np.flatnonzero(long & (rule == 0))

        def band_hashes(band: int) -> Iterator[NDArray[np.uint64]]:
            for piece in self.group.slices:
                yield self.hashes[piece.chunk].bands[band, piece.start : piece.stop]

        pairs = candidate_pairs(band_hashes, near.bands, searched, self.ranks, self.memory)
        if not len(pairs):
            return Copies.none()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            offsets = self._write_sets(near, np.unique(pairs), file)
            sets = np.memmap(file, np.uint32, "r") if offsets["end"] else np.zeros(0, np.uint32)

            def shingle_set(position: int) -> NDArray[np.uint32]:
                start, stop = offsets[position]
                return sets[start:stop]

            return near_copies(pairs, shingle_set, self.ranks, near.jaccard)

    def _write_sets(self, near: NearDuplicates, positions: NDArray[np.int64], file: Any) -> dict[Any, Any]:
        """Appends documents' shingle sets to `file`; returns each one's range, and the total under `end`."""
        script = "" if self.group.kind == "code" else script_of(self.group.language)
        where: dict[Any, Any] = {"end": 0}
        for rows, table in self._rows_of(positions, ["text"]):
            texts = table.column("text").to_pylist()
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                sets, offsets = shingle_sets(shingles_of(texts[start : start + _TEXTS_AT_ONCE], near, script))
                file.write(sets.tobytes())
                for index, row in enumerate(rows[start : start + _TEXTS_AT_ONCE].tolist()):
                    where[row] = (where["end"] + int(offsets[index]), where["end"] + int(offsets[index + 1]))
                where["end"] += len(sets)
        file.flush()
        return where

    def _rows_of(
        self, positions: NDArray[np.int64], columns: Sequence[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Columns of the documents at sorted positions, row group by row group."""
        for piece, start in zip(self.group.slices, self.starts, strict=False):
            row = int(start)
            inside = positions[(positions >= start) & (positions < start + piece.rows)]
            if not len(inside):
                continue
            for table in read_row_groups(part_path(self.root, "filtered", piece.part), columns):
                mine = inside[(inside >= row) & (inside < row + table.num_rows)]
                if len(mine):
                    yield mine, table.take(pa.array(mine - row))
                row += table.num_rows

    def _templated(self, rule: NDArray[np.uint8]) -> None:
        """Marks pairs whose text on one side is paired with too many different texts on the other."""
        part = self.group.slices[0].part
        limit = thresholds_for(self.corpus, "parallel", part.language).max_target_repeats
        if limit is None:
            return
        stay = np.flatnonzero(rule == 0)
        sides = np.concatenate(list(self._arrays("sides")))[stay]
        for side in (0, 1):
            over = over_used([sides[:, side]], self.ranks[stay], limit)
            rule[stay[over]] = RULES.index("templated")

    def _paragraphs(self, rule: NDArray[np.uint8], decisions: dict[str, list[NDArray[Any]]]) -> None:
        """Marks paragraphs that occur in a better-ranked document of the group."""
        keys, ranks, chunks, places = [], [], [], []
        for piece, start in zip(self.group.slices, self.starts, strict=False):
            hashes = self.hashes[piece.chunk]
            owners = hashes.paragraph_rows
            first, last = np.searchsorted(owners, [piece.start, piece.stop])
            rows = owners[first:last] - piece.start + start
            matters = (rule[rows] == 0) & hashes.paragraph_keys[first:last].any(axis=1)
            at = np.flatnonzero(matters) + first
            keys.append(hashes.paragraph_keys[at])
            ranks.append(self.ranks[owners[at] - piece.start + start])
            places.append(at)
            chunks.append(np.full(len(at), piece.chunk, np.int64))
        copies = exact_copies(lambda: iter(keys), np.concatenate(ranks), self.memory)
        decisions["cut_chunk"].append(np.concatenate(chunks)[copies.removed])
        decisions["cut_position"].append(np.concatenate(places)[copies.removed])

    def _write_clusters(self, clusters: Sequence[tuple[str, Copies]], writer: PartWriter) -> None:
        needed = np.unique(
            np.concatenate([np.zeros(0, np.int64), *(x for _, c in clusters for x in (c.removed, c.kept))])
        )
        if not len(needed):
            return
        names: dict[int, tuple[str, str]] = {}
        for rows, table in self._rows_of(needed, ["id", "source"]):
            values = zip(table.column("id").to_pylist(), table.column("source").to_pylist(), strict=True)
            names.update(zip(rows.tolist(), values, strict=True))
        for rule, copies in clusters:
            removed = [names[row] for row in copies.removed.tolist()]
            kept = [names[row] for row in copies.kept.tolist()]
            count = len(removed)
            columns = [
                [self.group.kind] * count,
                [self.group.language] * count,
                [rule] * count,
                *([list(x) for x in zip(*removed, strict=True)] if count else [[], []]),
                *([list(x) for x in zip(*kept, strict=True)] if count else [[], []]),
                copies.similarity.tolist(),
            ]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, CLUSTER_SCHEMA, strict=True)]
            writer.write(pa.table(arrays, schema=CLUSTER_SCHEMA))
