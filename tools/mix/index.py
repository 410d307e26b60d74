"""Megatron's `.idx` files, written without Megatron.

The format: `MMIDIDX\\0\\0`, version (uint64 = 1), type code (uint8), number of sequences (uint64), number of
document boundaries (uint64), then lengths (int32), byte offsets into the `.bin` (int64) and boundaries
(int64).
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.tools.mix.arrays import CHUNK_ROWS, read_at, write_at

__all__ = ["IndexReader", "IndexWriter", "index_header"]

_MAGIC = b"MMIDIDX\x00\x00"
_CODES = {"int32": 4, "uint16": 8}
HEADER_BYTES = 34


def index_header(dtype: np.dtype[Any], rows: int) -> bytes:
    """The 34 bytes before the arrays."""
    return _MAGIC + struct.pack("<QBQQ", 1, _CODES[dtype.name], rows, rows + 1)


class IndexWriter:
    """Writes one `.idx` piece by piece, at any place; the number of rows is known beforehand.

    Args:
        path: the file; it must not exist.
        dtype: type of a token id.
        rows: number of rows that will be put.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], rows: int) -> None:
        self.path, self.rows, self.written = path, rows, 0
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(self._descriptor, index_header(dtype, rows))

    def put(self, row: int, lengths: np.ndarray, offsets: np.ndarray) -> None:
        """Writes rows from place `row` on: lengths in tokens, offsets in bytes."""
        write_at(self._descriptor, np.ascontiguousarray(lengths, np.int32), HEADER_BYTES + 4 * row)
        at = HEADER_BYTES + 4 * self.rows + 8 * row
        write_at(self._descriptor, np.ascontiguousarray(offsets, np.int64), at)
        with self._lock:
            self.written += len(lengths)

    def close(self) -> None:
        """Writes the document boundaries (every row is a document) and closes the file."""
        if self.written != self.rows:
            raise ValueError(f"{self.path}: {self.written} rows written, but {self.rows} announced")
        at = HEADER_BYTES + 12 * self.rows
        for start in range(0, self.rows + 1, CHUNK_ROWS):
            stop = min(self.rows + 1, start + CHUNK_ROWS)
            write_at(self._descriptor, np.arange(start, stop, dtype=np.int64), at + 8 * start)
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class IndexReader:
    """Reads an `.idx` piece by piece.

    Attributes:
        dtype: type of a token id.
        rows: number of rows.

    Raises:
        UserError: not an `.idx`, or its size does not match its header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = {code: name for name, code in _CODES.items()}
        with path.open("rb") as handle:
            header = handle.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or header[:9] != _MAGIC:
            raise UserError(f"{path}: not a Megatron index; build the mix again")
        version, code, rows, boundaries = struct.unpack("<QBQQ", header[9:])
        expected = HEADER_BYTES + 12 * rows + 8 * boundaries
        if version != 1 or code not in names or boundaries != rows + 1 or path.stat().st_size != expected:
            raise UserError(f"{path}: its size does not match its header; build the mix again")
        self.dtype, self.rows = np.dtype(names[code]), int(rows)

    def lengths(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the rows from `start` to before `stop` (int32)."""
        return self._read("<i4", 0, start, stop)

    def offsets(self, start: int, stop: int) -> np.ndarray:
        """Byte offsets of these rows (int64)."""
        return self._read("<i8", 4 * self.rows, start, stop)

    def boundaries(self, start: int, stop: int) -> np.ndarray:
        """Document boundaries (int64), of which there is one more than rows."""
        return self._read("<i8", 12 * self.rows, start, stop)

    def _read(self, dtype: str, begin: int, start: int, stop: int) -> np.ndarray:
        array = np.empty(stop - start, dtype)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            read_at(descriptor, array, HEADER_BYTES + begin + start * array.itemsize)
        finally:
            os.close(descriptor)
        return array
