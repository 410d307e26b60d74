"""What a folder's file system can do of what the stages rely on, tried in the folder itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from emma.base.claims import temporary_name, try_lock

__all__ = ["FileSystem", "examine_file_system", "local_locks"]

# Mount options by which a lock holds on one machine alone: Lustre's, and NFS's (which also shows `nolock` as local_lock).
_LOCAL_LOCKS = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}


@dataclass(frozen=True)
class FileSystem:
    """A folder's file system. `faults` say what it cannot do, and what to do about it.

    Attributes:
        folder: the folder, or the nearest one above it that exists.
        kind: as the kernel names it: ext4, lustre, nfs4; empty if unknown.
        free_bytes: for this user.
        free_files: likewise; None where the file system does not count them.
        faults: what is missing.
    """

    folder: str
    kind: str
    free_bytes: int
    free_files: int | None
    faults: list[str] = field(default_factory=list)


def examine_file_system(folder: Path) -> FileSystem:
    """Tries in a folder what every stage needs of it; what is made for that is removed."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    kind, _ = _mount(folder)
    files = status.f_favail if status.f_files else None
    place = folder / temporary_name("doctor")
    try:
        place.mkdir()
    except OSError as error:
        fault = (
            f"cannot be written ({error.strerror}). Fix: name another folder, or ask for the right to write"
        )
        return FileSystem(str(folder), kind, free, files, [fault])
    try:
        faults = [found for probe in (_renames, _locks, _links, _syncs) if (found := _try(probe, place))]
    finally:
        with suppress(OSError):
            shutil.rmtree(place)
    return FileSystem(str(folder), kind, free, files, faults)


def _try(probe: Callable[[Path], str | None], place: Path) -> str | None:
    try:
        return probe(place)
    except OSError as error:
        return (
            f"{probe.__name__.removeprefix('_')}: {error.strerror}. Fix: use another file system for outputs"
        )


def _renames(place: Path) -> str | None:
    """A file over a file, and a folder to a new name: how each output gets its name."""
    one, other, old, new = (place / name for name in ("one", "other", "old", "new"))
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    one.replace(other)
    old.mkdir()
    old.rename(new)
    if one.exists() or other.read_bytes() != b"1" or not new.is_dir():
        return "does not rename in one step. Fix: use another file system for outputs"
    return None


def _locks(place: Path) -> str | None:
    path = place / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for _ in range(2))
    try:
        held, again = try_lock(first), try_lock(second)
    finally:
        os.close(first)
        os.close(second)
    if held is None:
        return (
            "has no locks (flock), so two commands that write one output are not kept apart. "
            "Fix: mount it with them (Lustre: -o flock)"
        )
    if again is not False:
        return (
            "gives one lock to two writers. Fix: mount it with real locks (NFS: without nolock or local_lock)"
        )
    return local_locks(place)


def local_locks(folder: Path) -> str | None:
    """What is wrong with the locks in a folder, if its mount options say that they hold on one machine alone."""
    _, options = _mount(folder.absolute())
    if not (local := sorted(_LOCAL_LOCKS.intersection(options))):
        return None
    return (
        f"has locks that other machines don't see (mount option `{local[0]}`), so commands on two machines that write "
        "one output are not kept apart. Fix: mount it with shared locks (Lustre: -o flock; NFS: without nolock or "
        "local_lock), or submit from one machine"
    )


def _links(place: Path) -> str | None:
    link = place / "link"
    link.symlink_to("target")
    (place / "target").write_bytes(b"x")
    return (
        None
        if link.read_bytes() == b"x"
        else "has no symbolic links, which a mix needs. Fix: use another one for mixes"
    )


def _syncs(place: Path) -> str | None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return None


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text(encoding="utf-8")


def _mount(folder: Path) -> tuple[str, list[str]]:
    """Type and options of the mount that holds a folder, from the kernel's list."""
    best, kind, options = "", "", list[str]()
    with suppress(OSError):
        for line in _mounts().splitlines():
            _, point, name, given, *_ = line.split(" ")
            point = point.encode().decode("unicode_escape")  # a space is \040
            inside = str(folder) == point or str(folder).startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind, options = point, name, given.split(",")
    return kind, options
