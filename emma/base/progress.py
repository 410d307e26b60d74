"""Progress bars on a terminal, plain lines in a log file, silence on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

__all__ = ["progress"]

if TYPE_CHECKING:
    _Bar = tqdm[Any]
else:
    _Bar = tqdm  # it takes no parameters when it runs

_SECONDS = 60.0
"""Between two lines in a log file."""


class _Lines(_Bar):
    """A bar for files and pipes: one line a minute, without carriage returns, and none for what is done sooner."""

    def __init__(self, iterable: Any = None, **options: Any) -> None:
        options |= {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS, "leave": False}
        self._shown = -1.0
        super().__init__(iterable, **options, ncols=0)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Returns nothing: `close` would erase a bar that was shown."""
        if msg is None and self._shown != self.n:
            self._shown = self.n
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable and self._shown >= 0:
            self.display()
        super().close()


def progress[T](iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """A tqdm bar on standard error.

    Without a terminal it prints a plain line a minute; `EMMA_PROGRESS=0` turns it off.
    """
    options.setdefault("file", sys.stderr)
    options.setdefault("disable", os.environ.get("EMMA_PROGRESS") == "0")
    if not options["file"].isatty():
        return cast("tqdm[T]", _Lines(iterable, **options))
    options.setdefault("dynamic_ncols", True)
    return cast("tqdm[T]", tqdm(iterable, **options))
