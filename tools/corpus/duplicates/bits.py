"""One bit for each document: in memory where that fits, otherwise in a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emma.base.arrays import read_at, write_at

__all__ = ["Bits"]


class Bits:
    """Bits, all zero at first.

    Args:
        count: number of bits.
        memory: bytes that they may take; where that isn't enough, they lie in a temporary file, and one page of it at a
            time is in memory.
        folder: of the file.
    """

    def __init__(self, count: int, memory: int, folder: Path) -> None:
        size = -(-count // 8)
        self._page = max(1, min(size, memory))
        self._values = np.zeros(self._page, np.uint8)
        self._number, self._file = 0, None
        if self._page < size:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
            os.ftruncate(self._file.fileno(), -(-size // self._page) * self._page)

    def _turn(self, page: int) -> None:
        if self._file is not None and page != self._number:
            write_at(self._file.fileno(), self._values, self._number * self._page)
            read_at(self._file.fileno(), self._values, page * self._page)
            self._number = page

    def get(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The bits at places."""
        found = np.zeros(len(places), np.bool_)
        page, byte = np.divmod(places >> 3, self._page)
        for number in np.unique(page).tolist():
            self._turn(number)
            mine = page == number
            found[mine] = self._values[byte[mine]] >> (places[mine] & 7).astype(np.uint8) & 1
        return found

    def set(self, places: NDArray[np.int64]) -> None:
        """Makes the bits at places one."""
        page, byte = np.divmod(places >> 3, self._page)
        for number in np.unique(page).tolist():
            self._turn(number)
            mine = page == number
            np.bitwise_or.at(self._values, byte[mine], np.uint8(1) << (places[mine] & 7).astype(np.uint8))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
