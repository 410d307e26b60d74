"""What becomes of each document of a chunk: the rule that removes it, which document it is a copy of, how many copies it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emma.base.files import atomic_write
from emma.tools.corpus.duplicates.hashing import ALIVE, NUMBERING, group_of, write_bits
from emma.tools.corpus.duplicates.messages import Messages
from emma.tools.corpus.duplicates.numbering import Numbering
from emma.tools.corpus.layout import Part, part_path, read_row_groups

__all__ = ["CLUSTER_SCHEMA", "RULES", "Decisions", "cluster_tables", "drop_exact", "resolve"]

RULES = ("", "exact_duplicate", "near_duplicate", "templated", "duplicate_paragraphs")
"""Rules; their indices are the numbers in the decisions, and 0 keeps a document."""

CLUSTER_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "language", "rule")),
        *((name, pa.string()) for name in ("removed_id", "removed_source", "kept_id", "kept_source")),
        ("similarity", pa.float64()),
    ]
)
"""Columns of `deduplicated/clusters/part-NNNNN.parquet`, with one row per removed copy and its original. `similarity` is 1
for exact copies and the Jaccard index for near ones."""

_NAMES = pa.schema([("row", pa.int64()), ("id", pa.string()), ("source", pa.string())])

Files = Mapping[str, Sequence[str]]
"""Names of messages' files by kind."""


def _write_alive(folder: Path, chunk: int, numbering: Numbering, rule: NDArray[np.uint8]) -> None:
    runs = numbering.runs_of(chunk)
    for block in np.unique(numbering.block[runs]).tolist():
        mine = runs[numbering.block[runs] == block]
        last = mine[-1]
        stop = numbering.row[last] + numbering.first[last + 1] - numbering.first[last]
        write_bits(folder, ALIVE, chunk, block, rule[numbering.row[mine[0]] : stop] == 0)


def drop_exact(folder: str, chunk: int, rows: int, files: Files) -> dict[str, Any]:
    """Notes which rows of a chunk are exact copies, and how many each row has."""
    numbering = Numbering.read(Path(folder) / NUMBERING)
    rule = np.zeros(rows, np.uint8)
    for messages in Messages(Path(folder), "exact", files.get("exact", ()), numbering).to_chunk(chunk):
        rule[numbering.places(messages["rank"])[1]] = RULES.index("exact_duplicate")
    _write_alive(Path(folder), chunk, numbering, rule)
    copies = np.zeros(rows, np.int64)
    for messages in Messages(Path(folder), "copies", files.get("copies", ()), numbering).to_chunk(chunk):
        copies[numbering.places(messages["rank"])[1]] += messages["copies"]
    with atomic_write(Path(folder) / f"{chunk:06d}-copies.npy") as handle:
        np.save(handle, copies)
    return {}


def resolve(
    root: str, folder: str, chunk: int, parts: Sequence[Part], slices: Sequence[Sequence[int]], files: Files
) -> dict[str, Any]:
    """Writes the decisions on a chunk's documents, and the names of those that others are copies of."""
    numbering = Numbering.read(Path(folder) / NUMBERING)
    count = slices[-1][1]
    rule = np.zeros(count, np.uint8)
    copies = np.ones(count, np.int64)
    removed: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []

    def messages(kind: str) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        for each in Messages(Path(folder), kind, files.get(kind, ()), numbering).to_chunk(chunk):
            yield each, numbering.places(each["rank"])[1]

    for each, rows in messages("exact"):
        rule[rows] = RULES.index("exact_duplicate")
        removed.append((rows, each["kept"], np.ones(len(rows))))
    for each, rows in messages("near"):
        rule[rows] = RULES.index("near_duplicate")
        removed.append((rows, each["kept"], each["similarity"]))
    for _, rows in messages("templated"):
        rule[rows] = RULES.index("templated")
    for kind in ("copies", "near-copies"):
        for each, rows in messages(kind):
            copies[rows] += each["copies"]
    _write_alive(Path(folder), chunk, numbering, rule)
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns = [np.concatenate(each) for each in zip(empty, *removed, strict=True)]
    order = np.argsort(columns[0])
    names = ("row", "kept", "similarity")
    with atomic_write(Path(folder) / f"{chunk:06d}-decisions.npz") as handle:
        arrays: dict[str, Any] = dict(zip(names, (each[order] for each in columns), strict=True))
        np.savez(handle, rule=rule, copies=copies, **arrays)
    _write_names(Path(root), Path(folder), chunk, parts, slices, copies > 1)
    return {}


def _write_names(
    root: Path,
    folder: Path,
    chunk: int,
    parts: Sequence[Part],
    slices: Sequence[Sequence[int]],
    wanted: NDArray[np.bool_],
) -> None:
    with atomic_write(_names_path(folder, chunk)) as handle, pa.ipc.new_file(handle, _NAMES) as writer:
        for row, table in _rows_of(root, parts, slices, wanted):
            writer.write_table(
                pa.table([pa.array(row), table.column("id"), table.column("source")], schema=_NAMES)
            )


def _names_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:06d}-names.arrow"


def _rows_of(
    root: Path, parts: Sequence[Part], slices: Sequence[Sequence[int]], wanted: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Rows, ids and sources of the wanted rows of a chunk, row group by row group."""
    for part, (start, stop) in zip(parts, slices, strict=True):
        if not wanted[start:stop].any():
            continue
        row = start
        for table in read_row_groups(part_path(root, "filtered", part), ["id", "source"]):
            mine = np.flatnonzero(wanted[row : row + table.num_rows])
            if len(mine):
                yield mine + row, table.take(pa.array(mine))
            row += table.num_rows


@dataclass(frozen=True)
class Decisions:
    """What `resolve` decided on a chunk's documents.

    Attributes:
        rule: index in `RULES` of each row (uint8).
        copies: of each row, itself included: how many documents it stands for (int64).
        row: of those that are copies of another document, ascending.
        kept: rank of that other document.
        similarity: with it.
    """

    rule: NDArray[np.uint8]
    copies: NDArray[np.int64]
    row: NDArray[np.int64]
    kept: NDArray[np.int64]
    similarity: NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path, chunk: int) -> Decisions:
        """Reads the decisions on a chunk."""
        with np.load(folder / f"{chunk:06d}-decisions.npz") as arrays:
            return cls(**{name: arrays[name] for name in ("rule", "copies", "row", "kept", "similarity")})


def cluster_tables(
    root: Path, folder: Path, parts: Sequence[Part], slices: Sequence[Sequence[int]], decisions: Decisions
) -> Iterator[pa.Table]:
    """Rows of `CLUSTER_SCHEMA` for a chunk's removed copies."""
    numbering = Numbering.read(folder / NUMBERING)
    wanted = np.zeros(len(decisions.rule), np.bool_)
    wanted[decisions.row] = True
    for rows, table in _rows_of(root, parts, slices, wanted):
        here = slice(*np.searchsorted(decisions.row, [rows[0], rows[-1] + 1]))
        kept = _names(folder, numbering, decisions.kept[here])
        part = parts[int(np.searchsorted([stop for _, stop in slices], rows[0], side="right"))]
        kind, language = group_of(part)
        count = len(rows)
        columns = [
            pa.array([kind] * count),
            pa.array([language] * count),
            pa.array([RULES[rule] for rule in decisions.rule[rows].tolist()]),
            table.column("id"),
            table.column("source"),
            kept.column("id"),
            kept.column("source"),
            pa.array(decisions.similarity[here]),
        ]
        yield pa.table(columns, schema=CLUSTER_SCHEMA)


def _names(folder: Path, numbering: Numbering, ranks: NDArray[np.int64]) -> pa.Table:
    """Ids and sources of documents that others are copies of."""
    chunks, rows = numbering.places(ranks)
    order, found = [np.zeros(0, np.int64)], [_NAMES.empty_table()]
    for chunk in np.unique(chunks).tolist():
        mine = np.flatnonzero(chunks == chunk)
        # Mapped, so that only what is taken is read.
        with pa.memory_map(str(_names_path(folder, chunk))) as file:
            names = pa.ipc.open_file(file).read_all()
            at = np.searchsorted(names.column("row").to_numpy(), rows[mine])
            found.append(pa.Table.from_batches(names.take(pa.array(at)).to_batches(), _NAMES))
        order.append(mine)
    back = np.argsort(np.concatenate(order), kind="stable")
    return pa.concat_tables(found).take(pa.array(back))
