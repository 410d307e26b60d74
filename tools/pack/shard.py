"""Writes one shard of a work unit: token ids, its documents, checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.tools.pack.store import COUNTED_SCHEMA, DOCUMENT_SCHEMA

__all__ = ["ShardWriter"]

_ROW_GROUP = 1 << 17


class ShardWriter:
    """One shard.

    Args:
        folder: of the unit.
        number: of the shard in it.
        component: name of the component.
        dtype: of a token id.
        begin_of_text_id: opens every document, if there is one.
        end_of_text_id: closes every document.
        counted: whether the documents have the column `copies`.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        component: str,
        dtype: np.dtype[Any],
        begin_of_text_id: int | None,
        end_of_text_id: int,
        *,
        counted: bool = False,
    ) -> None:
        self.component, self.dtype = component, dtype
        self.begin_of_text_id, self.end_of_text_id = begin_of_text_id, end_of_text_id
        self.bin_path = folder / f"shard-{number:03d}.bin"
        self.documents_path = folder / f"documents-{number:03d}.parquet"
        self.counted = counted
        self._schema = COUNTED_SCHEMA if counted else DOCUMENT_SCHEMA
        self.tokens = 0
        self.rows = 0
        self._digest = hashlib.sha256()
        self._file = self.bin_path.open("wb")
        self._parquet = pq.ParquetWriter(
            self.documents_path,
            self._schema,
            compression="zstd",
            use_dictionary=["language", "component", "source", "split", *(["copies"] if counted else [])],
            column_encoding={
                "row": "DELTA_BINARY_PACKED",
                "offset": "DELTA_BINARY_PACKED",
                "tokens": "DELTA_BINARY_PACKED",
                "bytes": "DELTA_BINARY_PACKED",
            },
        )
        # Documents whose rows are not written yet: what is known of them, their tokens and bytes of text.
        self._waiting: list[tuple[pa.Table, np.ndarray, np.ndarray]] = []
        self._waiting_rows = self._waiting_tokens = 0

    def append(self, tokens: np.ndarray, lengths: np.ndarray, table: pa.Table, sizes: np.ndarray) -> None:
        """Appends whole documents."""
        content = tokens.view(np.uint8).data
        self._digest.update(content)
        self._file.write(content)
        self._waiting.append((table, lengths, sizes))
        self._waiting_rows += len(lengths)
        self._waiting_tokens += len(tokens)
        self.tokens += len(tokens)
        if self._waiting_rows >= _ROW_GROUP:
            self._flush(whole=True)

    def _flush(self, *, whole: bool) -> None:
        """Writes row groups of a fixed number of rows, so that the bytes do not depend on the batches."""
        tables, lengths, sizes = zip(*self._waiting, strict=True)
        table, lengths, sizes = pa.concat_tables(tables), np.concatenate(lengths), np.concatenate(sizes)
        stop = len(table) // _ROW_GROUP * _ROW_GROUP if whole else len(table)
        if stop:
            first = self.tokens - self._waiting_tokens
            self._write_rows(table.slice(0, stop), lengths[:stop], sizes[:stop], first)
        self._waiting = [(table.slice(stop), lengths[stop:], sizes[stop:])]
        self._waiting_rows, self._waiting_tokens = len(table) - stop, int(lengths[stop:].sum())

    def _write_rows(self, table: pa.Table, lengths: np.ndarray, sizes: np.ndarray, first: int) -> None:
        """Writes rows of documents, the first of which begins after `first` tokens."""
        count = len(table)
        offsets = (first + np.cumsum(lengths) - lengths) * self.dtype.itemsize
        columns = [
            pa.array(np.arange(self.rows, self.rows + count)),
            table["language"],
            pa.repeat(self.component, count),
            table["source"],
            table["document_id"],
            pa.array(offsets),
            pa.array(lengths.astype(np.int32)),
            pa.array(sizes.astype(np.int64)),
            table["split"],
            *([table["copies"]] if self.counted else []),
        ]
        rows = pa.table(columns, names=self._schema.names).cast(self._schema).combine_chunks()
        self._parquet.write_table(rows, row_group_size=_ROW_GROUP)
        self.rows += count

    def close(self) -> dict[str, Any]:
        """Closes both files and checks that each document on disk has its begin and end of text."""
        self._flush(whole=False)
        self._parquet.close()
        self._file.close()
        self._check_boundaries()
        return {
            "bytes": self.tokens * self.dtype.itemsize,
            "rows": self.rows,
            "bin_sha256": self._digest.hexdigest(),
            "documents_bytes": self.documents_path.stat().st_size,
            "documents_sha256": sha256_file(self.documents_path),
        }

    def abandon(self) -> None:
        self._file.close()
        self._parquet.close()

    def _check_boundaries(self) -> None:
        tokens = np.memmap(self.bin_path, self.dtype, "r")
        for batch in pq.ParquetFile(self.documents_path).iter_batches(1 << 20, columns=["offset", "tokens"]):
            starts = batch["offset"].to_numpy() // self.dtype.itemsize
            ends = starts + batch["tokens"].to_numpy()
            wrong = tokens[ends - 1] != self.end_of_text_id
            if self.begin_of_text_id is not None:
                wrong |= tokens[starts] != self.begin_of_text_id
            if wrong.any():
                raise UserError(
                    f"{self.bin_path}: document {int(np.flatnonzero(wrong)[0])} lacks its "
                    "begin or end of text right after it was written; check the disk"
                )
