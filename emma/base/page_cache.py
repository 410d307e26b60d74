"""The kernel's cache of files."""

from __future__ import annotations

import os

__all__ = ["forget"]


def forget(descriptor: int, offset: int = 0, size: int = 0) -> None:
    """Asks the kernel, where it can be asked, to write what it has of a file at once, without waiting for it, and to drop
    what it need not write from its cache.

    Args:
        descriptor: of the file.
        offset: first byte.
        size: bytes; 0 for all until the end.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
