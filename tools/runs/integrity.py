"""Whether the files of a checkpoint are what was written: read and compared with its completion mark. Needs no torch.

One process checks the files that it is given (`check_files`). The ranks of a run deal a checkpoint's files out among
themselves (`deal`; `tools/training/session/loading.py`), so that each byte is read once; the command line checks whole
checkpoints (`verify`).
"""

from __future__ import annotations

import functools
import heapq
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from emma.base.errors import UserError
from emma.base.system_errors import OF_PROCESSES
from emma.tools.runs.checkpoints import listed_files
from emma.tools.runs.checksums import (
    ALGORITHMS,
    THREADS,
    TRANSIENT,
    Advance,
    ListedFile,
    checksum_file,
    drop_from_cache,
)

__all__ = ["Fault", "Verdict", "check_files", "deal", "verify", "without_checksums"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file. `damage` is False where this process was not allowed or not able to look, `number` the
    error of the operating system then, if it was one."""

    file: str
    reason: str
    damage: bool = True
    number: int | None = None

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


@dataclass(frozen=True)
class Verdict:
    """What the files of a checkpoint are.

    Attributes:
        folder: the checkpoint.
        state: `verified`; `sizes only` (an older version wrote no checksums, and the sizes are right); `damaged`;
            `incomplete` (the save did not finish); `unreadable` (this process could not look).
        files: number of files.
        bytes: their size.
        faults: what is wrong, empty for the first two states.
    """

    folder: Path
    state: str
    files: int
    bytes: int
    faults: tuple[str, ...] = ()

    def as_damaged(self) -> Verdict:
        """For a checkpoint that has lost its mark after it was complete."""
        return replace(self, state="damaged", faults=("complete.json is missing",))


def without_checksums(files: Mapping[str, ListedFile]) -> bool:
    """Whether an older version wrote the mark, which lists sizes only."""
    return any(file.checksum is None for file in files.values())


def deal(sizes: Mapping[str, int], shares: int) -> list[list[str]]:
    """Deals files out so that the shares have about equal bytes: the largest first, each to the smallest share.

    No share exceeds the mean by more than the largest file. All callers get the same answer.
    """
    dealt: list[list[str]] = [[] for _ in range(shares)]
    heap = [(0, number) for number in range(shares)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        filled, number = heapq.heappop(heap)
        dealt[number].append(name)
        heapq.heappush(heap, (filled + sizes[name], number))
    return dealt


def check_files(
    folder: Path,
    files: Mapping[str, ListedFile],
    advance: Advance = lambda size: None,
    say: Callable[[str], object] = lambda message: None,
) -> list[Fault]:
    """Reads files and compares them with what was written.

    A file whose content differs is read once more, past the page cache, and a read that fails is repeated: a single
    bad read is no damage.

    Args:
        folder: the checkpoint.
        files: the files to look at, of those in its mark.
        advance: progress in bytes.
        say: receives a message on each file that was wrong only once.
    """
    check = functools.partial(_check_file, folder, advance=advance, say=say)
    with ThreadPoolExecutor(THREADS) as pool:
        return [fault for fault in pool.map(check, files, files.values()) if fault is not None]


def _check_file(
    folder: Path, name: str, expected: ListedFile, *, advance: Advance, say: Callable[[str], object]
) -> Fault | None:
    path, algorithm = folder / name, (expected.checksum or "").partition(":")[0]
    if algorithm and algorithm not in ALGORITHMS:
        return Fault(
            name, f"has a checksum of a kind ({algorithm}) that this version cannot compute", damage=False
        )
    try:
        if not path.is_file():
            return Fault(name, "is missing")
        size = path.stat().st_size
        if size != expected.bytes:
            return Fault(name, f"has {size} bytes, but {expected.bytes} were written")
        if expected.checksum is None or checksum_file(path, expected.checksum, advance) == expected:
            return None
        drop_from_cache(path)
        if checksum_file(path, expected.checksum) == expected:
            say(
                f"{path}: read wrong once, and right the second time; the memory or disk of this node is suspect"
            )
            return None
    except FileNotFoundError:
        return Fault(name, "is missing")
    except OSError as error:
        return Fault(
            name, f"cannot be read: {error.strerror}", damage=error.errno in TRANSIENT, number=error.errno
        )
    return Fault(name, "holds other bytes than were written (its checksum differs)")


def verify(folder: Path, advance: Advance = lambda size: None) -> Verdict:
    """Checks a whole checkpoint in this process, with several files at once.

    Raises:
        OSError: this process has run out of open files or memory; there is no verdict.
    """
    try:
        files = listed_files(folder)
    except UserError as error:
        state = "incomplete" if "is missing" in str(error) else "damaged"
        return Verdict(folder, state, 0, 0, (str(error),))
    faults = check_files(folder, files, advance)
    for fault in faults:
        if fault.number in OF_PROCESSES:
            raise OSError(fault.number, os.strerror(fault.number or 0), str(folder / fault.file))
    state = "sizes only" if without_checksums(files) else "verified"
    if faults:
        state = "damaged" if any(fault.damage for fault in faults) else "unreadable"
    size = sum(file.bytes for file in files.values())
    return Verdict(folder, state, len(files), size, tuple(map(str, faults)))
