"""Writing files so that a reader sees the old content or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from emma.base.claims import claim, sweep, temporary_name
from emma.base.sharing import shared
from emma.base.system_errors import OF_PROCESSES, named

__all__ = [
    "append_line",
    "atomic_write",
    "fsync_path",
    "read_json",
    "sha256_file",
    "write_json",
    "write_text",
]


def fsync_path(path: Path) -> None:
    """Makes a file's content, or a folder's entries (renames in it), durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb", **open_options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; on success fsyncs and renames it to `path`, on error removes it.

    Any number of processes on any machines may write the same file at once: each writes a temporary file of
    its own, locked while it is open, and the last one to finish wins. The first to write into a folder removes what
    killed processes were writing there.

    Args:
        path: final name; its folder is created.
        mode: `"wb"` or `"w"`.
        open_options: passed to `open`; text mode defaults to UTF-8.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    if "b" not in mode:
        open_options.setdefault("encoding", "utf-8")
    with shared(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with named(path):
            sweep(path.parent)
            opened = open(temporary, mode, opener=claim, **open_options)  # noqa: SIM115 (entered below)
    try:
        with named(path), opened as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
            temporary.replace(path)  # before the lock goes with the handle
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Atomically writes UTF-8 text."""
    with atomic_write(path, "w") as handle:
        handle.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Atomically writes indented JSON with a final newline; numpy scalars and arrays are accepted."""
    with atomic_write(path) as handle:
        handle.write(
            orjson.dumps(
                value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
            )
        )


def read_json(path: Path | str) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is missing, unreadable, or not JSON; the message names it.
        OSError: this process has run out of open files or memory, so nothing is known of the file.
    """
    from emma.base.errors import UserError

    path = Path(path)
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno in OF_PROCESSES:
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be a file of yours") from None
    except orjson.JSONDecodeError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); it was truncated or edited: write it again"
        ) from None


def append_line(path: Path | str, line: bytes) -> None:
    """Appends one line with a single `write`, so that concurrent readers never see half of it.

    Raises:
        OSError: it cannot be written whole; what a full disk took of it is cut off again.
    """
    path = Path(path)
    line = line.rstrip(b"\n") + b"\n"
    with shared(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with named(path):
            written = os.write(descriptor, line)
            if written < len(line):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
