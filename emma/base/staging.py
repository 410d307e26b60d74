"""Output folders that appear whole or not at all, each with one writer at a time.

A writer is the folder's sole writer (`writers.py`), works in a temporary folder beside it, and renames that at
the end. Nothing is removed that a living process or another machine may be writing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from emma.base.claims import of_this_machine, temporary_name
from emma.base.errors import UserError
from emma.base.files import fsync_path, write_text
from emma.base.sizes import size_text
from emma.base.system_errors import OF_WRITES, named
from emma.base.writers import Lock, sole_writer

__all__ = [
    "WORK_NAME",
    "WrittenMeanwhileError",
    "check_free_space",
    "clear_leftovers",
    "resumable_folder",
    "staged_folder",
]

WORK_NAME = ".work"
"""Subfolder of a resumable folder for the marks of finished work; removed when the folder gets its name."""

_FINGERPRINT = "fingerprint"
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[^.]+-\d+-[0-9a-f]{8}\.(partial|old)", re.DOTALL)


class WrittenMeanwhileError(UserError):
    """Another process has put its result where this one's should go."""


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that unfinished folders are removed; only in a program's main thread."""
    if threading.current_thread() is not threading.main_thread() or parent_process() is not None:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def staged_folder(destination: Path, *, overwrite: bool = False, lock: Lock | None = None) -> Iterator[Path]:
    """Lends a temporary folder beside `destination`, which takes its name when the block ends without error.

    On an error, an interrupt or SIGTERM the temporary folder is removed and `destination` is as it was. After
    SIGKILL the next call for the same destination on the same machine removes it; a call on another machine
    names it.

    Args:
        destination: final name.
        overwrite: replace what is there.
        lock: that of a caller that is already the sole writer.

    Raises:
        InUseError: another process is writing `destination`.
        WrittenMeanwhileError: another machine, which this one's lock did not keep out, wrote it in the
            meantime.
        UserError: `destination` exists and `overwrite` is off.
    """
    with sole_writer(destination) if lock is None else nullcontext(lock) as held:
        destination = held.destination
        clear_leftovers(destination.parent, held, destination.name)
        _refuse_existing(destination, overwrite)
        before = _identity(destination)
        partial = destination.parent / temporary_name(destination.name)
        with _termination_as_exit(), named(destination, OF_WRITES):
            try:
                partial.mkdir()
                yield partial
                _synchronise(partial)
                _give_name(partial, destination, before)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(destination: Path, fingerprint: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Lends a temporary folder beside `destination`, which takes its name when the block ends without error.

    Unlike `staged_folder`, a block that fails leaves what it finished: the next call with the same
    fingerprint gets the same folder again. The block keeps its marks of finished work (`*.json`) in the
    folder's subfolder `WORK_NAME`; where there are none, nothing is left.

    Args:
        destination: final name.
        fingerprint: identifies what the content depends on; what a call with another one left is removed.
        overwrite: replace what is there.

    Raises:
        InUseError: another process is writing `destination`, or one on another machine may be.
        UserError: `destination` exists and `overwrite` is off.
    """
    with sole_writer(destination, continues=True) as held:
        destination = held.destination
        clear_leftovers(destination.parent, held, destination.name)
        _refuse_existing(destination, overwrite)
        before = _identity(destination)
        partial = destination.parent / f".{destination.name}.partial"
        work = partial / WORK_NAME
        mark = work / _FINGERPRINT
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            if partial.exists():
                shutil.rmtree(partial)
            write_text(mark, fingerprint)
        for path in partial.rglob(".*.partial"):  # files that killed processes were writing
            path.unlink(missing_ok=True)
        with _termination_as_exit(), named(destination, OF_WRITES):
            try:
                yield partial
                # It takes long; while the marks are there, an interrupt loses nothing.
                _synchronise(partial)
                shutil.rmtree(work)
                fsync_path(partial)
                _give_name(partial, destination, before)
            except BaseException:
                if not any(work.rglob("*.json")):
                    shutil.rmtree(partial, ignore_errors=True)
                raise


def clear_leftovers(folder: Path, lock: Lock, name: str | None = None) -> list[Path]:
    """Removes what killed writers of this machine left in `folder`; names what others left on stderr.

    The caller holds the lock, so no other process of this machine is writing. A writer that was killed while
    it replaced a folder has left the old one under another name: it is put back.

    Args:
        folder: where to look.
        lock: the one that every writer of these outputs must hold.
        name: name of one output; by default all.

    Returns:
        What stays: a process of another machine may be writing it, or it belongs to another user.
    """
    stay: list[Path] = []
    for entry in sorted(os.listdir(folder)):  # noqa: PTH208 - of thousands of units, each looks through all
        match = _LEFTOVER.fullmatch(entry)
        if match is None or name not in (None, match["name"]):
            continue
        path = folder / entry
        who = "another machine, or from before a restart"
        if lock.certain and of_this_machine(path):
            try:
                if path.suffix == ".old" and not (folder / match["name"]).exists():
                    path.rename(folder / match["name"])
                else:
                    _remove(path)
                continue
            except PermissionError:
                who = "another user"
            except OSError as error:
                who = f"this machine, and not removable ({error.strerror})"
        stay.append(path)
        print(
            f"{path}: left by a process of {who}; remove it if nothing writes there",
            file=sys.stderr,
            flush=True,
        )
    return stay


def _refuse_existing(destination: Path, overwrite: bool) -> None:
    if destination.exists() and not overwrite and (destination.is_file() or any(destination.iterdir())):
        raise UserError(f"{destination}: exists; name another folder, or pass --overwrite to replace it")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder or file a path names, None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _give_name(partial: Path, destination: Path, before: tuple[int, int] | None) -> None:
    """Gives a finished and durable folder its name.

    Args:
        partial: the folder.
        destination: its name.
        before: what had the name when the work began.
    """
    if _identity(destination) != before:
        raise _written_meanwhile(destination)
    # Not every file system can swap two folders in one step, so the old one is moved aside first.
    old = destination.parent / temporary_name(destination.name, "old")
    try:
        if before is not None:
            destination.rename(old)
        partial.rename(destination)
    except BaseException as error:  # also an interrupt between the two
        if old.exists() and not destination.exists():
            old.rename(destination)
        if isinstance(error, OSError) and _identity(destination) not in (None, before):
            raise _written_meanwhile(destination) from None
        raise
    fsync_path(destination.parent)
    if before is not None:
        try:
            _remove(old)
        except OSError as error:  # on NFS, somebody reads it still
            print(
                f"{old}: replaced, but not removed ({error.strerror}); remove it", file=sys.stderr, flush=True
            )


def _written_meanwhile(destination: Path) -> WrittenMeanwhileError:
    return WrittenMeanwhileError(
        f"{destination}: another process wrote it in the meantime; its files are kept and these are dropped. "
        "Fix: use what is there, or name another output"
    )


def _synchronise(folder: Path) -> None:
    """Makes files and folders below and including `folder` durable, and readable to those who may read the folder.

    Some libraries write a temporary file that they rename (safetensors): only its owner may read it.
    """
    readable = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o600:
            path.chmod(readable)
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            fsync_path(path)
    fsync_path(folder)


def check_free_space(folder: Path, needed: int) -> None:
    """Refuses to begin if the disk lacks the space.

    Args:
        folder: where it is to go; it need not exist yet.
        needed: bytes.

    Raises:
        UserError: too little space; the message gives needed and free bytes.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder}: {size_text(needed)} are to be written, but {size_text(free)} are free; "
            "free some space or name another disk"
        )
