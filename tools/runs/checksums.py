"""Checksums of checkpoint files. Needs no torch.

Files that training writes get XXH3 with 128 bits: it finds damage as surely as SHA-256 (both miss a random change
with a chance of 2^-128 or less) at almost five times its speed, reading included, so that a save waits for the disk and
not for the hash.
It is no protection against someone who means to deceive, who could write `complete.json` anew. The import takes
SHA-256 while it writes, for its manifest, and the mark repeats that. docs/benchmarks/checkpoint_hashes.md has the
figures.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from emma.base.page_cache import forget

__all__ = [
    "ALGORITHMS",
    "TRANSIENT",
    "Advance",
    "ListedFile",
    "checksum_file",
    "checksum_of",
    "checksums",
    "drop_from_cache",
]

type Advance = Callable[[int], object]
"""Called with the bytes read, from any thread."""

THREADS = 4
"""Files read at once by a process: what hides the latency of a parallel file system. One core takes in more than
most storage delivers."""

TRANSIENT = {
    getattr(errno, name)
    for name in ("EAGAIN", "EHOSTDOWN", "EIO", "ENOTCONN", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT")
}
"""Errors of a read that may succeed a moment later, most of them a network file system's."""

PAUSES = (1.0, 4.0)
"""Seconds to wait before each further try after such an error."""

ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By the name that stands before the colon of a checksum."""

_DEFAULT = "xxh3_128"
_CHUNK = 8 << 20


@dataclass(frozen=True)
class ListedFile:
    """A file as `complete.json` lists it: `bytes`, and `checksum` ("xxh3_128:…" or "sha256:…"; None where an
    older version listed sizes only)."""

    bytes: int
    checksum: str | None


def checksum_of(data: bytes) -> str:
    """Checksum of a few bytes in memory."""
    return f"{_DEFAULT}:{xxhash.xxh3_128_hexdigest(data)}"


def checksum_file(path: Path, like: str | None = None, advance: Advance = lambda size: None) -> ListedFile:
    """Reads a file once, in chunks of 8 MiB; tries again after a transient error.

    Args:
        path: the file.
        like: a checksum whose algorithm to use.
        advance: progress.

    Returns:
        The bytes that were read, and their checksum.

    Raises:
        OSError: it cannot be read, or still not after the last try.
    """
    algorithm = _DEFAULT if like is None else like.partition(":")[0]
    for pause in (*PAUSES, None):
        digest, size = ALGORITHMS[algorithm](), 0
        try:
            with path.open("rb", buffering=0) as handle:
                buffer = memoryview(bytearray(_CHUNK))
                while read := handle.readinto(buffer):
                    digest.update(buffer[:read])
                    size += read
                    advance(read)
        except OSError as error:
            advance(-size)
            if error.errno not in TRANSIENT or pause is None:
                raise
            time.sleep(pause)
        else:
            break
    return ListedFile(size, f"{algorithm}:{digest.hexdigest()}")


def checksums(
    folder: Path, names: Iterable[str], advance: Advance = lambda size: None
) -> dict[str, ListedFile]:
    """Checksums of files of a folder, several at once.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        tasks = {name: pool.submit(checksum_file, folder / name, None, advance) for name in names}
        return {name: task.result() for name, task in tasks.items()}


def drop_from_cache(path: Path) -> None:
    """Asks the kernel to forget a file's pages, so that the next read comes from the disk or the server, where it can be
    asked."""
    with path.open("rb") as handle:
        forget(handle.fileno())
