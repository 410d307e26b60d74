"""`.npy` files written and read piece by piece, at any place and from several threads, without mapping them: mapped pages
would count as the process's memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

__all__ = ["CHUNK_ROWS", "NpyReader", "NpyWriter", "read_at", "write_at"]

CHUNK_ROWS = 1 << 20
"""Rows of a piece when a whole file is read."""


def write_at(descriptor: int, array: np.ndarray, position: int) -> None:
    """Writes an array's bytes at a byte position of a file."""
    view = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else memoryview(b"")
    while len(view):
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def read_at(descriptor: int, array: np.ndarray, position: int) -> None:
    """Fills a contiguous array from a byte position of a file.

    Raises:
        EOFError: the file ends before.
    """
    view = memoryview(array.view(np.uint8).reshape(-1)) if array.size else memoryview(b"")
    while len(view):
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise EOFError(f"the file ends at byte {position}")
        view, position = view[count:], position + count


class NpyWriter:
    """Writes a `.npy` whose length is known, row by row at any place.

    Args:
        path: the file.
        dtype: of an entry.
        shape: of the array; a row is an entry of the first axis.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self._width = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        text = repr(fields).ljust(256 - 11) + "\n"
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")
        self._begin = os.write(self._descriptor, head)

    def put(self, row: int, array: np.ndarray) -> None:
        """Writes rows from place `row` on."""
        write_at(self._descriptor, np.ascontiguousarray(array, self.dtype), self._begin + row * self._width)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            os.fsync(self._descriptor)
        os.close(self._descriptor)


class NpyReader:
    """Reads a `.npy` by rows.

    Raises:
        ValueError: not a `.npy`, or its size does not match its header.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            version = np.lib.format.read_magic(handle)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            self.shape, fortran, self.dtype = read_header[version](handle)
            self._begin = handle.tell()
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        if fortran or path.stat().st_size != self._begin + self._row * self.shape[0]:
            raise ValueError(f"{path}: its size does not match its header")
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows from `start` to before `stop`."""
        array = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        read_at(self._descriptor, array, self._begin + start * self._row)
        return array

    def chunks(self, stop: int | None = None) -> Iterator[np.ndarray]:
        """All rows (before `stop`), in pieces."""
        end = len(self) if stop is None else stop
        for start in range(0, end, CHUNK_ROWS):
            yield self.read(start, min(start + CHUNK_ROWS, end))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
