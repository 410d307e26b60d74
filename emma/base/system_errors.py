"""What the machine refuses, in words: a full disk, a missing permission, no memory, a killed process.

One table for all commands. The command line asks it for each error that no stage has explained better.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from emma.base.errors import UserError

__all__ = ["DEBUG", "OF_PROCESSES", "OF_WRITES", "SystemFaultError", "explain", "named", "report"]

DEBUG = "EMMA_DEBUG"
"""Environment variable that shows tracebacks; the processes that a command starts inherit it."""

PASSING = 75
"""Exit code of a fault that may have passed by the next call (`EX_TEMPFAIL` of sysexits.h)."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

_AGAIN = "then run the same command again: it continues from what was finished"

# errno → what it means, what to do.
_FAULTS = {
    errno.ENOSPC: ("the disk is full", f"free space there (`df -h`, `df -i`), {_AGAIN}"),
    errno.EDQUOT: ("your disk quota is used up", f"free space or ask for more (`quota -s`), {_AGAIN}"),
    errno.EROFS: ("the file system is mounted read-only", "name a folder that can be written"),
    errno.EACCES: ("permission denied", "ask its owner for access, or name another folder"),
    errno.EPERM: ("the operation is not permitted", "ask its owner for access, or name another folder"),
    errno.ENOENT: ("does not exist, or was removed while this command ran", "check the path"),
    errno.ENOTDIR: (
        "a part of this path is a file, not a folder",
        "name another path, or move the file away",
    ),
    errno.EISDIR: ("is a folder; a file is expected", "name the file"),
    errno.EEXIST: (
        "exists already, and is not the folder that is needed",
        "move it away, or name another path",
    ),
    errno.ENOTEMPTY: (
        "the folder is not empty: something else writes there",
        f"find out what does, {_AGAIN}",
    ),
    errno.ELOOP: ("symbolic links lead to each other in a circle", "correct the links"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter one"),
    errno.EMFILE: ("this process has too many open files", f"raise the limit (`ulimit -n 65536`), {_AGAIN}"),
    errno.ENFILE: ("the machine has too many open files", f"close other programs, {_AGAIN}"),
    errno.EFBIG: ("the file would exceed a limit on its size", f"raise the limit (`ulimit -f`), {_AGAIN}"),
    errno.EXDEV: ("its parts are on different file systems", "keep the folder on one file system"),
    errno.ETXTBSY: ("is being executed", f"wait for the program to end, {_AGAIN}"),
    errno.EBUSY: ("is in use", f"wait for what uses it, {_AGAIN}"),
    errno.EAGAIN: ("the machine starts no more processes now", f"raise the limit (`ulimit -u`), {_AGAIN}"),
    errno.ENOMEM: ("there is no memory left", f"use fewer workers or a larger machine, {_AGAIN}"),
    errno.EIO: (
        "the disk reports an input/output error",
        f"look at the kernel's log (`dmesg`); if it passes, {_AGAIN}",
    ),
    errno.ESTALE: ("the network file system has lost this file", f"wait until it is back, {_AGAIN}"),
    errno.ETIMEDOUT: ("the file system or network does not answer", f"wait until it is back, {_AGAIN}"),
    errno.ENOTCONN: ("the file system is not connected", f"mount it again, {_AGAIN}"),
    errno.ENOLCK: (
        "the file system gives no locks",
        "ask for them to be mounted, or use another file system",
    ),
}

_PASSING = {
    *(
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.ENFILE,
        errno.EBUSY,
    )
}


OF_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""What only a write can meet; no file that is read is to blame."""

OF_PROCESSES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What a process or its machine has run out of; it says nothing about the file that was to be read."""


class SystemFaultError(UserError):
    """A fault of the machine rather than of the input; `exit_code` is 75 where it may pass by itself."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.exit_code = PASSING if passing else 2


@contextmanager
def named(path: Path | str, only: Container[int] | None = None) -> Iterator[None]:
    """Gives errors of the operating system the path that they lack: a write knows its descriptor only.

    Args:
        path: what is written.
        only: numbers of the errors that are meant; by default all.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None and (only is None or error.errno in only):
            error.filename = str(path)
        raise


def report(error: BaseException) -> int | None:
    """Prints what went wrong, for the entry point of a program.

    Returns:
        The exit code; None where the error is a bug, or `EMMA_DEBUG` asks for tracebacks: raise it then.
    """
    if isinstance(error, KeyboardInterrupt):
        print(
            "interrupted. Run the same command again: what was finished is kept", file=sys.stderr, flush=True
        )
        return INTERRUPTED
    fault = _out_of_means(error) or (error if isinstance(error, UserError) else explain(error))
    if fault is None or os.environ.get(DEBUG):
        return None
    print(f"error: {fault}", file=sys.stderr, flush=True)
    return fault.exit_code


def _out_of_means(error: BaseException) -> SystemFaultError | None:
    """What the process had run out of when it read a file, behind a message that blames the file; or None."""
    if not isinstance(error, UserError) or isinstance(error, SystemFaultError):
        return None
    behind = error.__cause__ or error.__context__
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in OF_PROCESSES:
            return explain(behind)
        behind = behind.__cause__ or behind.__context__
    # From a worker, or from a library that gives no number, there are words alone.
    for number in OF_PROCESSES:
        if os.strerror(number) in str(error):
            return SystemFaultError(f"{error}. Fix: {_FAULTS[number][1]}", passing=number in _PASSING)
    return None


def explain(error: BaseException) -> SystemFaultError | None:
    """An error in words for the user; None for one that is not the machine's."""
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
    if isinstance(error, MemoryError):
        what, fix = _FAULTS[errno.ENOMEM]
        return SystemFaultError(f"{what}. Fix: {fix}", passing=True)
    futures = sys.modules.get("concurrent.futures.process")
    if futures is not None and isinstance(error, futures.BrokenProcessPool):
        return SystemFaultError(
            "a worker process was killed, most often by the kernel for want of memory (`dmesg` says so). "
            f"Fix: use fewer workers, {_AGAIN}",
            passing=True,
        )
    subprocess = sys.modules.get("subprocess")
    if subprocess is not None and isinstance(error, subprocess.CalledProcessError):
        return _explain_process(error)
    return _explain_library(error)


_TORCH_ARCHIVE = r"PytorchStreamWriter failed|inline_container|unexpected pos|file write failed"

_MEGATRON_WRITER = r"Worker failure: .*<class '(OSError|PermissionError|FileNotFoundError|RuntimeError)'>"

# What libraries say where the operating system has refused something: words → errno, None where the words hold it.
_LIBRARIES: dict[str, int | None] = {
    r"\(os error (\d+)\)": None,  # Rust: tokenizers, safetensors
    r"can't start new thread": errno.EAGAIN,  # Python
    r"Resource temporarily unavailable": errno.EAGAIN,  # gloo
    r"can't allocate memory": errno.ENOMEM,  # torch
    r"Too many open files": errno.EMFILE,  # safetensors, which gives no number
    _TORCH_ARCHIVE: errno.EIO,
}


def _explain_library(error: BaseException) -> SystemFaultError | None:
    # Closing its archive, torch hides the error that kept it from writing.
    hidden = error.__context__ if re.search(_TORCH_ARCHIVE, str(error)) else None
    while hidden is not None and not isinstance(hidden, OSError):
        hidden = hidden.__context__
    if hidden is not None:
        return explain(hidden)
    for words, number in _LIBRARIES.items():
        if isinstance(error, Exception) and (found := re.search(words, str(error))):
            return _explain_os_error(OSError(number or int(found[1]), str(error)))
    if isinstance(error, RuntimeError) and re.search(_MEGATRON_WRITER, str(error)):
        return SystemFaultError(
            "a file of the checkpoint could not be written; Megatron keeps no reason. Fix: look at the disk (`df -h`) and "
            f"the kernel's log (`dmesg`), {_AGAIN}",
            passing=True,
        )
    # torch gathers what its writers of checkpoints met.
    for _, failure in (
        getattr(error, "failures", {}).items() if isinstance(getattr(error, "failures", None), dict) else ()
    ):
        if isinstance(failure, tuple) and failure and isinstance(failure[0], BaseException):
            return explain(failure[0])
    return None


def _explain_os_error(error: OSError) -> SystemFaultError | None:
    known = _FAULTS.get(error.errno or 0)
    if known is None:
        return None
    what, fix = known
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    if len(paths) == 2 and error.errno == errno.EISDIR:
        paths = paths[1:]  # a file that was written under a passing name, and was to take the folder's
    place = " → ".join(paths)
    if error.errno in (errno.EACCES, errno.EPERM) and paths:
        what += _owner(Path(paths[0]))
    message = f"{place}: {what}. Fix: {fix}" if place else f"{what} ({error}). Fix: {fix}"
    return SystemFaultError(message, passing=error.errno in _PASSING)


def _owner(path: Path) -> str:
    """Who may write the nearest part of a path that exists, in words."""
    for part in (path, *path.parents):
        try:
            facts = part.stat()
        except OSError:
            continue
        try:
            import pwd

            name = pwd.getpwuid(facts.st_uid).pw_name
        except (ImportError, KeyError):
            name = str(facts.st_uid)
        return f" ({part} belongs to {name}, {stat.filemode(facts.st_mode)})"
    return ""


def _explain_process(error: BaseException) -> SystemFaultError:
    command, code = getattr(error, "cmd", ""), int(getattr(error, "returncode", 1))
    shown = command if isinstance(command, str) else " ".join(map(str, command))
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code})"
    said = getattr(error, "stderr", None) or getattr(error, "output", None) or ""
    said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    tail = "".join(f"\n  {line}" for line in said.strip().splitlines()[-5:])
    return SystemFaultError(f"`{shown[:200]}` {ending}{tail}", passing=code < 0)
