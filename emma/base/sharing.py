"""Files for a team: what is written into a folder that its group may write, the group may write too.

Which group owns a file is the folder's matter (setgid, or the user's own group); here are the modes alone. They follow
from the umask, since libraries and child processes write most files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["parse_umask", "set_umask", "shared", "umask", "umask_for"]

_GROUP = 0o070
_lock = threading.Lock()
_before: int | None = None
_depth = 0
_fixed = False


def parse_umask(text: str) -> int:
    """A umask as shells write it, e.g. `002` or `0027`.

    Raises:
        ValueError: it is none, or takes from the owner.
    """
    if not 3 <= len(text) <= 4 or not set(text) <= set("01234567") or int(text, 8) & ~0o077:
        raise ValueError(f"{text!r} is not a umask; write e.g. 002 (group may write) or 027 (group may read)")
    return int(text, 8)


def set_umask(text: str) -> None:
    """Sets this process's umask for good: folders that others may write don't change it any more."""
    global _fixed
    os.umask(parse_umask(text))
    _fixed = True


def umask_for(folder: Path) -> int:
    """The umask for what is written into a folder, which need not exist yet: this process's own, and without the
    group's bits where the group may write."""
    own = umask()
    return own if _fixed or not _of_a_group(folder) else own & ~_GROUP


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Within the block, `umask_for` the folder holds in this process, and in those that it starts."""
    global _before, _depth
    mask = umask_for(folder)
    with _lock:
        # Threads may enter and leave in any order; the last one out restores what the first one found.
        if _depth == 0:
            _before = os.umask(mask)
        else:
            os.umask(mask & _current_locked())
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _before is not None:
                os.umask(_before)


def _of_a_group(folder: Path) -> bool:
    """Whether the group may write the nearest folder that exists."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            return bool(place.stat().st_mode & 0o020)
        except OSError:
            continue
    return False


def umask() -> int:
    """This process's umask."""
    with _lock:
        return _current_locked()


def _current_locked() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
