"""Turns a corpus's parts into release files, training and validation rows separately. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.tools.corpus.layout import PartWriter, read_row_groups, schema_of, text_columns
from emma.tools.corpus.release.source import Shard

__all__ = ["SPLITS", "file_name", "merge_validation", "pieces_of", "write_shard"]

SPLITS = ("train", "validation")
DATA_NAME = "data"
_PIECES = "validation"


def file_name(kind: str, language: str, split: str, number: int = 0) -> str:
    """Path of a data file within the release."""
    return f"{DATA_NAME}/{kind}/{language}/{split}-{number:05d}.parquet"


def _piece(work: str | Path, shard: Shard) -> Path:
    return Path(work) / _PIECES / f"{shard.name}.parquet"


def write_shard(stage: str, folder: str, work: str, shard: Shard) -> dict[str, Any]:
    """Writes a shard's training file, and its validation rows as a piece to be merged.

    Args:
        stage: folder of the corpus's `split` stage.
        folder: the release.
        work: folder for unfinished work.
        shard: the parts to write.

    Returns:
        `files` (record of the training file and its rows; empty if there are no training rows), `validation`
        (number of rows), and `sources`: rows of source, licence, split, documents, characters, UTF-8 bytes.

    Raises:
        UserError: a part does not match the corpus's manifest, or a row cannot be released.
    """
    texts = text_columns(shard.kind)
    training = Path(folder) / file_name(shard.kind, shard.language, "train", shard.number)
    paths = {"train": training, "validation": _piece(work, shard)}
    sums: dict[tuple[str, str, str], list[int]] = {}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(PartWriter(path, schema_of(shard.kind), texts))
            for split, path in paths.items()
        }
        for record in shard.parts:
            path = Path(stage) / record.path
            if f"sha256:{sha256_file(path)}" != record.checksum:
                raise UserError(
                    f"{path}: its SHA-256 differs from the corpus's manifest; the part has changed since it was built: "
                    "remove the stage's folder and run `emma corpus build RUN`"
                )
            first = 0
            for table in read_row_groups(path):
                if "copies" in table.column_names:  # says something of the raw text, not of the released
                    table = table.drop_columns(["copies"])
                _check_rows(path, first, table, shard)
                first += table.num_rows
                _add(sums, table, texts)
                for split, writer in writers.items():
                    writer.write(table.filter(pc.equal(table["split"], split)).drop_columns(["split"]))
    records = {split: writer.record(Path(folder)) for split, writer in writers.items()}
    for split, record_ in records.items():
        if record_ is not None:
            _synchronise(paths[split])
    return {
        "files": [record for record in (records["train"],) if record is not None],
        "validation": writers["validation"].rows,
        "sources": [[*key, *values] for key, values in sorted(sums.items())],
    }


def _check_rows(path: Path, first: int, table: pa.Table, shard: Shard) -> None:
    """Refuses rows that the release could not vouch for."""
    expected = schema_of(shard.kind, "split").names
    if table.column_names != expected:
        raise UserError(f"{path}: columns {table.column_names}, expected {expected}; build the corpus again")
    known = pc.is_in(table["split"], pa.array(SPLITS))
    rules = [
        ("split", known, f"is not one of {', '.join(SPLITS)}"),
        *(
            (name, pc.greater(pc.binary_length(pc.fill_null(table[name], "")), 0), "is empty")
            for name in (*text_columns(shard.kind), "id", "source", "license")
        ),
        *(
            (name, pc.equal(table[name], value), f"differs from the folder's {value}")
            for name, value in _languages(shard)
        ),
    ]
    for name, good, fault in rules:
        wrong = pc.index(pc.fill_null(good, False), False).as_py()
        if wrong >= 0:
            found = table["id"][wrong].as_py()
            raise UserError(
                f"{path}: row {first + wrong + 1} (id {found}): `{name}` {fault}; fix the source and build the corpus "
                "again"
            )


def _languages(shard: Shard) -> list[tuple[str, str]]:
    """Language columns and the values they must hold."""
    if shard.kind != "parallel":
        return [("language", shard.language)]
    src, _, tgt = shard.language.partition("-")
    return [("src_lang", src), ("tgt_lang", tgt)]


def _add(sums: dict[tuple[str, str, str], list[int]], table: pa.Table, texts: Sequence[str]) -> None:
    """Adds documents, characters, and bytes by source, licence, and split."""
    columns = {name: table[name] for name in ("source", "license", "split")}
    for measure, of in (("characters", pc.utf8_length), ("bytes", pc.binary_length)):
        total = of(table[texts[0]])
        for name in texts[1:]:
            total = pc.add(total, of(table[name]))
        columns[measure] = pc.cast(total, pa.int64())
    grouped = pa.table(columns).group_by(["source", "license", "split"])
    for row in grouped.aggregate([([], "count_all"), ("characters", "sum"), ("bytes", "sum")]).to_pylist():
        values = sums.setdefault((row["source"], row["license"], row["split"]), [0, 0, 0])
        for index, name in enumerate(("count_all", "characters_sum", "bytes_sum")):
            values[index] += row[name]


def pieces_of(work: Path, shards: Sequence[Shard], results: Sequence[dict[str, Any]]) -> list[Path]:
    """Pieces of one language's validation file, in order."""
    return [
        _piece(work, shard) for shard, result in zip(shards, results, strict=True) if result["validation"]
    ]


def merge_validation(folder: Path, kind: str, language: str, pieces: Sequence[Path]) -> dict[str, Any] | None:
    """Writes a language's validation file from its pieces; returns its record and rows, or None if it has
    none."""

    def tables() -> Iterator[pa.Table]:
        for piece in pieces:
            yield from read_row_groups(piece)

    path = folder / file_name(kind, language, "validation")
    with PartWriter(path, schema_of(kind), text_columns(kind)) as writer:
        for table in tables():
            writer.write(table)
    record = writer.record(folder)
    if record is not None:
        _synchronise(path)
    return record


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
