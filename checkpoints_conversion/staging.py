"""Output folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import fsync_directory, write_text

__all__ = ["WORK_NAME", "check_free_space", "resumable_folder", "staged_folder"]

WORK_NAME = ".work"
"""Folder in a resumable one for the marks of finished work; it goes when the folder gets its name."""

_FINGERPRINT = "fingerprint"


def _partial_name(destination: Path, process: int | str) -> str:
    return f".{destination.name}.{socket.gethostname()}-{process}.partial"


def _running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True


def _remove_leftovers(destination: Path) -> None:
    """Removes what a killed process of this machine left of the same destination."""
    prefix, suffix = _partial_name(destination, "|").split("|")
    for path in destination.parent.glob(f"{prefix}*{suffix}"):
        if not _running(path.name[len(prefix) : -len(suffix)]):
            shutil.rmtree(path)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit, so that what is half done is removed (only in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
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
def staged_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Lends a temporary folder beside `destination`, which takes its name when the block ends without error.

    On an error, an interrupt or SIGTERM the temporary folder is removed and `destination` is as it was; after SIGKILL
    the next call for the same destination removes it.

    Args:
        destination: final name.
        overwrite: replace a folder that stands there.

    Raises:
        UserError: `destination` exists and `overwrite` is off.
    """
    destination = _vacant(destination, overwrite)
    _remove_leftovers(destination)
    partial = destination.parent / _partial_name(destination, os.getpid())
    partial.mkdir()
    with _termination_as_exit():
        try:
            yield partial
            _give_name(partial, destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(destination: Path, fingerprint: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Lends a temporary folder beside `destination`, which takes its name when the block ends without error.

    Unlike `staged_folder`, a block that fails leaves what it finished: the next call with the same fingerprint gets the
    same folder again. The block keeps its marks of finished work (`*.json`) in the folder's subfolder `WORK_NAME`;
    where there are none, nothing is left.

    Args:
        destination: final name.
        fingerprint: what the content is a function of; what another one left is removed.
        overwrite: replace a folder that stands there.

    Raises:
        UserError: `destination` exists and `overwrite` is off, or another process is writing it.
    """
    destination = _vacant(destination, overwrite)
    partial = destination.parent / f".{destination.name}.partial"
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{destination}: another process is writing it; wait for that one") from None
        work = partial / WORK_NAME
        mark = work / _FINGERPRINT
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            for path in partial.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(mark, fingerprint)
        with _termination_as_exit():
            try:
                yield partial
                shutil.rmtree(work)
                _give_name(partial, destination)
            except BaseException:
                if not any(work.rglob("*.json")):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
    finally:
        os.close(handle)


def _vacant(destination: Path, overwrite: bool) -> Path:
    """The absolute name of a folder that may be written; its parent is made."""
    destination = destination.absolute()
    if destination.exists() and not overwrite and (destination.is_file() or any(destination.iterdir())):
        raise UserError(f"{destination}: exists; name another folder, or pass --overwrite to replace it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    return destination


def _give_name(partial: Path, destination: Path) -> None:
    """Makes a finished folder durable and renames it."""
    for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        fsync_directory(folder)
    if destination.exists():
        # Nobody can swap two folders in one step everywhere, so the old one steps aside for an instant.
        old = destination.parent / _partial_name(destination, f"{os.getpid()}-old")
        destination.rename(old)
        partial.rename(destination)
        shutil.rmtree(old)
    else:
        partial.rename(destination)
    fsync_directory(destination.parent)


def check_free_space(folder: Path, needed: int) -> None:
    """Refuses to begin what cannot fit.

    Args:
        folder: where it is to go; it need not exist yet.
        needed: bytes.

    Raises:
        UserError: with the bytes there are and the bytes there must be.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free; "
            "free some space or name another disk"
        )
