"""Memory-mapped files: tensors are views of the page cache, and their pages are released after use."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch

from emma.base.errors import UserError
from emma.base.page_cache import forget

__all__ = ["MappedFile"]

_MOST_AT_ONCE = 2 << 20
"""Bytes that the kernel keeps, and drops, as one, at most."""


class MappedFile:
    """A read-only file in memory.

    The mapping ends when neither this object nor any of its tensors is referenced.

    Args:
        path: file to map; it must not change while it is mapped.

    Raises:
        UserError: the file is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle:
                # A private copy-on-write mapping, since torch warns about read-only buffers. Nothing writes
                # to it, so no page becomes anonymous memory.
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except ValueError:
            raise UserError(f"{path}: the file is empty; write it again") from None

    def __len__(self) -> int:
        return len(self._map)

    def read(self, offset: int, size: int) -> bytes:
        """Returns a copy of `size` bytes at `offset`; fewer at the end of the file."""
        return self._map[offset : offset + size]

    def tensor(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """Returns a contiguous view of the file; it must not be written to.

        Args:
            offset: first byte of the tensor.
            dtype: type of its elements.
            shape: its sizes; all elements must lie within the file.
        """
        count = math.prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        if offset % dtype.itemsize:
            # A view needs aligned elements. Writers align them, so this copy is rare.
            raw = bytearray(self.read(offset, count * dtype.itemsize))
            return torch.frombuffer(raw, dtype=dtype).view(tuple(shape))
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(tuple(shape))

    def release(self, offset: int, size: int) -> None:
        """Releases the pages that lie entirely within a range; later accesses read them again."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def forget(self, offset: int, size: int) -> None:
        """Drops a range from the kernel's cache of the file, too: later accesses read it from the disk. Where ranges are
        forgotten in order, so is what lies across their borders."""
        start = max(0, offset - _MOST_AT_ONCE) // mmap.PAGESIZE * mmap.PAGESIZE
        size += offset - start
        self._map.madvise(mmap.MADV_DONTNEED, start, size)
        # Opened anew: the files of several models are many to be held open.
        with self.path.open("rb") as handle:
            forget(handle.fileno(), start, size)
