"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.files import fsync_directory

__all__ = ["check_free_space", "staged_folder"]


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
    destination = destination.absolute()
    if destination.exists() and not overwrite and (destination.is_file() or any(destination.iterdir())):
        raise UserError(f"{destination}: exists; name another folder, or pass --overwrite to replace it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(destination)
    partial = destination.parent / _partial_name(destination, os.getpid())
    partial.mkdir()
    with _termination_as_exit():
        try:
            yield partial
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
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
