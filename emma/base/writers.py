"""The right to write an output, which one process holds at a time.

A writer locks `.NAME.lock` beside the output, or `.lock` in it. The lock file says who holds it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from emma.base.claims import is_at, machine, try_lock
from emma.base.errors import UserError
from emma.base.sharing import shared

__all__ = ["InUseError", "Lock", "sole_writer", "user_name"]

_POLL_SECONDS = 0.2


class InUseError(UserError):
    """Another process is writing the output.

    Args:
        message: for the user.
        writer: which process.
    """

    def __init__(self, message: str, writer: str = "another process") -> None:
        super().__init__(message)
        self.writer = writer


@dataclass(frozen=True)
class _Writer:
    """Who holds a lock; `machine` tells machines apart, the rest is for people."""

    machine: str
    host: str
    process: int
    since: str
    user: str = ""
    job: str | None = None

    def __str__(self) -> str:
        user = f" of {self.user}" if self.user else ""
        job = f", job {self.job}," if self.job else ""
        return f"process {self.process}{user} on {self.host}{job} since {self.since}"


@dataclass(frozen=True)
class Lock:
    """The right to write an output.

    Attributes:
        destination: absolute path of the output.
        certain: whether no other process of this machine can hold it; False where the file system has no
            locks.
    """

    destination: Path
    certain: bool


@contextmanager
def sole_writer(
    destination: Path, *, wait: bool = False, continues: bool = False, inside: bool = False
) -> Iterator[Lock]:
    """Holds the right to write an output, against all processes that call this for the same one.

    Args:
        destination: the output; the folder of the lock file is made.
        wait: wait for a process that is writing it, and say so on stderr.
        continues: the caller continues the last writer's work, so that writer must certainly have ended.
        inside: the output is a folder that is written in place, so the lock file is in it: the folder beside it may
            not be the user's, and two links may lead to it.

    Raises:
        InUseError: another process is writing it and `wait` is off; or, with `continues`, a writer on another
            machine has left its lock file, and a lock cannot tell whether it is alive.
        UserError: this user may not write there.
    """
    destination = destination.absolute()
    path = destination / ".lock" if inside else destination.parent / f".{destination.name}.lock"
    descriptor, certain = _acquire(path, destination, wait)
    try:
        before = _read_writer(descriptor)
        if before is not None and continues and (before.machine != machine() or not certain):
            raise InUseError(
                f"{destination}: {before} was writing it and may still be. Fix: wait for it; if it is gone, "
                f"remove {path} and run the same command again, which continues its work",
                str(before),
            )
        job = os.environ.get("SLURM_JOB_ID")
        writer = _Writer(machine(), socket.gethostname(), os.getpid(), _now(), user_name(), job)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, orjson.dumps(asdict(writer)), 0)
            with shared(path.parent):
                yield Lock(destination, certain)
        finally:
            # Removed while it is held: whoever has opened it meanwhile finds that the path no longer names it. If
            # somebody has removed it by hand, the path may name the lock file of the next writer.
            if is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                with suppress(PermissionError):  # another user's, in a sticky folder
                    path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path, destination: Path, wait: bool) -> tuple[int, bool]:
    """An open, locked lock file, and whether the lock is certain."""
    told = False
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise UserError(
                f"{destination}: {error.filename} can't be made or opened to write ({error.strerror}). Fix: get the "
                f"right to write in {path.parent}, or name another output"
            ) from None
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                # Others who share the folder may find it left by a killed writer.
                with suppress(PermissionError):  # a file system without modes
                    os.fchmod(descriptor, 0o666)
            held = try_lock(descriptor)
            if held is not False and is_at(path, descriptor):
                result, descriptor = descriptor, -1
                return result, held is True
            writer = _read_writer(descriptor) or "another process"
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS: its holder on another machine has just removed it
                raise
            continue
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if held is not False:
            continue
        if not wait:
            raise InUseError(
                f"{destination}: {writer} is writing it. Fix: wait for it, or name another output",
                str(writer),
            )
        if not told:
            print(f"{destination}: waiting for {writer}, which is writing it", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_SECONDS)


def _open(path: Path) -> int:
    """Opens a lock file; makes it, and the folder that it is in, if they are missing."""
    flags = os.O_RDWR | os.O_CLOEXEC
    while True:
        with shared(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        # With O_EXCL, since Linux refuses O_CREAT on another user's file in a sticky folder. Meanwhile another process
        # may have made the file, or removed the folder.
        with suppress(FileExistsError, FileNotFoundError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)


def _read_writer(descriptor: int) -> _Writer | None:
    try:
        return _Writer(**orjson.loads(os.pread(descriptor, 4096, 0)))
    except (orjson.JSONDecodeError, TypeError):
        return None  # just made, or its writer died before it wrote its name


def user_name() -> str:
    """Who runs this process: the name of its effective user, or the number where it has none."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(os.geteuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
