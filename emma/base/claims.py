"""Who writes what: temporary names that no two processes share, and locks that end with the process that
holds them.

A process id does not identify a process: every machine, and every pid namespace on a machine, counts from 1.
On one machine a lock of the kernel (`flock`) tells whether a writer is alive. Whether locks reach other
machines depends on how the file system is mounted, so files of another machine are never taken for abandoned.

A run's claim is another thing: see `tools/runs/fence.py`.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "claim",
    "is_at",
    "machine",
    "of_this_machine",
    "remove_abandoned",
    "sweep",
    "temporary_name",
    "try_lock",
]

_PARTIAL = re.compile(r"\..+\.[^.]+-\d+-[0-9a-f]{8}\.partial")

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@functools.cache
def machine() -> str:
    """This machine until its next boot: its host name (dots become underscores) and the start of the kernel's
    boot id, which is the same in every container and pid namespace of the machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        boot = "no-boot"
    return f"{socket.gethostname().replace('.', '_')}-{boot}"


def temporary_name(name: str, suffix: str = "partial") -> str:
    """`.<name>.<machine>-<process id>-<random>.<suffix>`: a hidden name that no other process uses.

    A file with the suffix `partial` must be opened with `claim`: without its lock it counts as abandoned.
    """
    return f".{name}.{machine()}-{os.getpid()}-{secrets.token_hex(4)}.{suffix}"


def of_this_machine(path: Path) -> bool:
    """Whether `temporary_name` made a file's or folder's name on this machine since it was booted."""
    return f".{machine()}-" in path.name


def try_lock(descriptor: int) -> bool | None:
    """Takes an exclusive lock on an open file without waiting; it ends when the file is closed, at the latest
    with the process.

    Returns:
        Whether this process holds it now; None where the file system has no locks.
    """
    import fcntl  # here, since not every system has it

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_at(path: Path | str, descriptor: int) -> bool:
    """Whether `path` still names the open file: somebody may have removed it before it was locked."""
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:  # NFS: removed on another machine
            return False
        raise


def claim(path: str, flags: int) -> int:
    """An `opener` for `open` that locks a temporary file until it is closed; `remove_abandoned` leaves it
    alone from the start."""
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        # Nobody else writes this file, but `remove_abandoned` may remove it before it is locked here.
        if try_lock(descriptor) is not False and is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Removes those temporary files whose writers, opened with `claim` on this machine, are provably dead."""
    for path in filter(of_this_machine, paths):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            continue  # gone, another user's, or a staged folder, which has another lock
        try:
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
        except PermissionError:
            continue  # in a folder where each may remove only what is his
        finally:
            os.close(descriptor)


@functools.cache
def sweep(folder: Path) -> None:
    """`remove_abandoned` in a folder, the first time that this process writes there."""
    try:
        remove_abandoned([path for path in folder.iterdir() if _PARTIAL.fullmatch(path.name)])
    except PermissionError:
        return  # who may not list a folder may still write into it
