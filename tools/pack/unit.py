"""Packs one work unit: reads its segments, makes documents, encodes them, writes shards of a set size."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import sha256_file, write_json
from emma.base.manifest import MANIFEST_NAME, FileRecord
from emma.base.staging import WrittenMeanwhileError, staged_folder
from emma.base.writers import sole_writer
from emma.recipes.schema.data import Pack, PackComponent
from emma.tools.pack.columns import as_array, encode_keys, join
from emma.tools.pack.documents import DocumentMaker
from emma.tools.pack.engine import Encoded, Encoder
from emma.tools.pack.inputs import Unit
from emma.tools.pack.records import read_segment
from emma.tools.pack.store import DOCUMENT_SCHEMA, token_dtype

__all__ = ["UNIT_FILE", "pack_unit", "unit_name"]

UNIT_FILE = "unit.json"
_ROW_GROUP = 1 << 17


def unit_name(index: int) -> str:
    """Folder of a packed unit below the component's `.pack/`."""
    return f"unit-{index:06d}"


def pack_unit(
    unit: Unit, name: str, component: PackComponent, pack: Pack, encoder: Encoder, folder: Path
) -> None:
    """Packs a unit into `folder/unit-NNNNNN/`, which appears whole, unless another process has packed it
    already.

    The folder's `unit.json` holds counts, sources, shards, checksums, and the languages that the gate refused
    here.

    Args:
        unit: what to read.
        name: the component's name.
        component: its settings.
        pack: the `pack` section.
        encoder: engines, with the verdicts of the component's gate.
        folder: the component's `.pack` folder.

    Raises:
        InUseError: another process is packing the unit.
        UserError: bad input; names file, line or row, and field.
    """
    target = folder / unit_name(unit.index)
    with sole_writer(target) as lock:
        # In this order: when a component is finished, its manifest is written before its units are removed.
        if target.is_dir() or (folder.parent / MANIFEST_NAME).is_file():
            return
        try:
            with staged_folder(target, lock=lock) as partial:
                write_json(partial / UNIT_FILE, _write_unit(unit, name, component, pack, encoder, partial))
        except WrittenMeanwhileError:
            return  # on another machine, with the same bytes


def _write_unit(
    unit: Unit, name: str, component: PackComponent, pack: Pack, encoder: Encoder, folder: Path
) -> dict[str, Any]:
    """Writes the shards of a unit into `folder`; returns what `unit.json` says."""
    refused_before = set(encoder.refused)
    maker = DocumentMaker(component, pack)
    writer = _UnitWriter(folder, name, pack, encoder)
    inputs: list[FileRecord] = []
    try:
        for segment in unit.segments:
            if segment.first:
                path = Path(segment.file.path)
                inputs.append(FileRecord(str(path), segment.file.bytes, f"sha256:{sha256_file(path)}"))
            for batch in read_segment(segment, *maker.fields, batch_bytes=maker.batch_bytes):
                for documents in maker.add(batch):
                    writer.add(documents)
        for documents in maker.finish():
            writer.add(documents)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return {
        "index": unit.index,
        "bytes_in": unit.bytes,
        "counts": {
            "in": maker.records,
            "kept": writer.documents,
            "removed_by": dict(sorted((Counter(maker.removed) + writer.removed).items())),
            "documents_cut": writer.cut,
            "tokens": writer.tokens,
        },
        "sources": [[*key, *map(int, counts)] for key, counts in sorted(writer.sources.items())],
        "shards": writer.shards,
        "refused": sorted(encoder.refused - refused_before),
        "inputs": [vars(record) for record in inputs],
    }


@dataclass
class _UnitWriter:
    """Encodes documents, appends them to shards and counts them."""

    folder: Path
    component: str
    pack: Pack
    encoder: Encoder
    removed: Counter[str] = field(default_factory=Counter)
    sources: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    cut: int = 0
    _shard: _ShardWriter | None = None

    def __post_init__(self) -> None:
        tokenizer = self.encoder.tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.begin_of_text_id, self.end_of_text_id = tokenizer.begin_of_text_id, tokenizer.end_of_text_id

    @property
    def shard_bytes(self) -> int:
        """Largest shard."""
        return self.pack.shard_mib << 20

    def add(self, documents: pa.Table) -> None:
        """Encodes and writes a table of documents."""
        documents = documents.combine_chunks()
        texts, languages = as_array(documents["text"]), as_array(documents["language"])
        encoded = self.encoder.encode(texts, languages)
        rows = np.arange(len(texts))
        lengths, starts = encoded.lengths, encoded.offsets[:-1]
        kept = lengths >= self.pack.min_tokens
        if not kept.all():
            self.removed["short"] += int((~kept).sum())
        limit = self.pack.max_tokens
        if limit is not None and (lengths > limit).any():
            long = lengths > limit
            self.cut += int(long.sum()) if self.pack.long_documents == "split" else 0
            if self.pack.long_documents == "drop":
                self.removed["long"] += int(long.sum())
                kept &= ~long
        rows, lengths, starts = rows[kept], lengths[kept], starts[kept]
        table = documents.select(["language", "source", "document_id", "split"])
        sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)[rows]
        if limit is not None and (lengths > limit).any():
            table, sizes, rows, starts, lengths = _cut(table.take(rows), sizes, starts, lengths, limit)
        elif not kept.all():
            table = table.take(rows)
        if not len(lengths):
            return
        tokens, ends = self._with_begin_and_end_of_text(encoded, starts, lengths)
        self._count(table, np.diff(ends, prepend=0), sizes)
        self._write(tokens, ends, table, sizes)

    def close(self) -> None:
        """Finishes the last shard."""
        if self._shard is not None:
            self.shards.append(self._shard.close())
            self._shard = None

    def abandon(self) -> None:
        """Closes files after an error."""
        if self._shard is not None:
            self._shard.abandon()

    def _with_begin_and_end_of_text(
        self, encoded: Encoded, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Writes begin and end of text: the ids of all documents in a row, and where each document ends in
        them."""
        opening = self.begin_of_text_id is not None
        ends = np.cumsum(lengths + 1 + opening)
        tokens = np.empty(ends[-1], self.dtype)
        body = np.ones(ends[-1], bool)
        body[ends - 1] = False
        tokens[ends - 1] = self.end_of_text_id
        if self.begin_of_text_id is not None:
            first = np.concatenate([[0], ends[:-1]])
            body[first] = False
            tokens[first] = self.begin_of_text_id
        ids = encoded.ids
        if int(lengths.sum()) != len(ids):
            ids = np.concatenate(
                [ids[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
            )
        tokens[body] = ids
        return tokens, ends

    def _count(self, table: pa.Table, lengths: np.ndarray, sizes: np.ndarray) -> None:
        indices, keys = encode_keys(table, ("language", "split"))
        codes = indices.to_numpy(zero_copy_only=False)
        for code, (language, split) in enumerate(keys):
            mine = codes == code
            counts = np.array([mine.sum(), lengths[mine].sum(), sizes[mine].sum()], np.int64)
            self.sources[language, split] = self.sources.get((language, split), 0) + counts
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())

    def _write(self, tokens: np.ndarray, ends: np.ndarray, table: pa.Table, sizes: np.ndarray) -> None:
        """Appends documents; opens the next shard where one would exceed its size."""
        limit = self.shard_bytes // self.dtype.itemsize
        done, position = 0, 0
        while done < len(ends):
            if self._shard is None:
                self._shard = _ShardWriter(self.folder, len(self.shards), self)
            room = limit - self._shard.tokens
            stop = int(np.searchsorted(ends, position + room, side="right"))
            if stop == done:
                if self._shard.tokens:
                    self.close()
                    continue
                stop = done + 1  # a document above the size gets its own shard
            piece = slice(done, stop)
            self._shard.append(
                tokens[position : ends[stop - 1]],
                np.diff(ends[piece], prepend=position),
                table.slice(done, stop - done),
                sizes[piece],
            )
            done, position = stop, int(ends[stop - 1])


class _ShardWriter:
    """One shard: `.bin`, its documents, checksums."""

    def __init__(self, folder: Path, number: int, unit: _UnitWriter) -> None:
        self.unit = unit
        self.bin_path = folder / f"shard-{number:03d}.bin"
        self.documents_path = folder / f"documents-{number:03d}.parquet"
        self.tokens = 0
        self.rows = 0
        self._digest = hashlib.sha256()
        self._file = self.bin_path.open("wb")
        self._parquet = pq.ParquetWriter(
            self.documents_path,
            DOCUMENT_SCHEMA,
            compression="zstd",
            use_dictionary=["language", "component", "source", "split"],
            column_encoding={
                "row": "DELTA_BINARY_PACKED",
                "offset": "DELTA_BINARY_PACKED",
                "tokens": "DELTA_BINARY_PACKED",
                "bytes": "DELTA_BINARY_PACKED",
            },
        )
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def append(self, tokens: np.ndarray, lengths: np.ndarray, table: pa.Table, sizes: np.ndarray) -> None:
        """Appends whole documents."""
        content = tokens.view(np.uint8).data
        self._digest.update(content)
        self._file.write(content)
        count, width = len(lengths), tokens.dtype.itemsize
        offsets = (self.tokens + np.cumsum(lengths) - lengths) * width
        columns = [
            pa.array(np.arange(self.rows, self.rows + count)),
            table["language"],
            pa.repeat(self.unit.component, count),
            table["source"],
            table["document_id"],
            pa.array(offsets),
            pa.array(lengths.astype(np.int32)),
            pa.array(sizes.astype(np.int64)),
            table["split"],
        ]
        rows = pa.table(columns, names=DOCUMENT_SCHEMA.names).cast(DOCUMENT_SCHEMA)
        self._waiting.append(rows)
        self._waiting_rows += count
        self.rows += count
        self.tokens += len(tokens)
        if self._waiting_rows >= _ROW_GROUP:
            self._flush(whole=True)

    def _flush(self, *, whole: bool) -> None:
        """Writes row groups of a fixed number of rows, so that the bytes do not depend on the batches."""
        rows = pa.concat_tables(self._waiting).combine_chunks()
        stop = len(rows) // _ROW_GROUP * _ROW_GROUP if whole else len(rows)
        if stop:
            self._parquet.write_table(rows.slice(0, stop), row_group_size=_ROW_GROUP)
        self._waiting, self._waiting_rows = [rows.slice(stop)], len(rows) - stop

    def close(self) -> dict[str, Any]:
        """Closes both files and checks that each document on disk has its begin and end of text."""
        self._flush(whole=False)
        self._parquet.close()
        self._file.close()
        self._check_boundaries()
        return {
            "bytes": self.tokens * self.unit.dtype.itemsize,
            "rows": self.rows,
            "bin_sha256": self._digest.hexdigest(),
            "documents_bytes": self.documents_path.stat().st_size,
            "documents_sha256": sha256_file(self.documents_path),
        }

    def abandon(self) -> None:
        self._file.close()
        self._parquet.close()

    def _check_boundaries(self) -> None:
        tokens = np.memmap(self.bin_path, self.unit.dtype, "r")
        for batch in pq.ParquetFile(self.documents_path).iter_batches(1 << 20, columns=["offset", "tokens"]):
            starts = batch["offset"].to_numpy() // self.unit.dtype.itemsize
            ends = starts + batch["tokens"].to_numpy()
            wrong = tokens[ends - 1] != self.unit.end_of_text_id
            if self.unit.begin_of_text_id is not None:
                wrong |= tokens[starts] != self.unit.begin_of_text_id
            if wrong.any():
                raise UserError(
                    f"{self.bin_path}: document {int(np.flatnonzero(wrong)[0])} lacks its "
                    "begin or end of text right after it was written; check the disk"
                )


def _cut(
    table: pa.Table, sizes: np.ndarray, starts: np.ndarray, lengths: np.ndarray, limit: int
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents above `limit` tokens into as few pieces as possible, of nearly equal length.

    Bytes of text are divided in proportion to tokens; ids get the suffixes `#0`, `#1`, ...
    """
    pieces = -(-lengths // limit)
    rows = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    count, length, size = pieces[rows], lengths[rows], sizes[rows]
    first, after = number * length // count, (number + 1) * length // count
    cut_sizes = (number + 1) * size // count - number * size // count
    table = table.take(rows)
    suffixes = pa.array([f"#{n}" for n in number.tolist()], pa.large_string())
    ids = join(table["document_id"], suffixes)
    ids = pc.if_else(pa.array(count > 1), ids, table["document_id"])
    table = table.set_column(table.column_names.index("document_id"), "document_id", ids)
    return table, cut_sizes, rows, starts[rows] + first, after - first
