"""Progress bars on a terminal, occasional lines in a log file, silence on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, cast

from tqdm import tqdm

__all__ = ["progress"]


def progress[T](iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """A tqdm bar on standard error.

    Without a terminal it prints at most one line every 30 s; `EMMA_PROGRESS=0` turns it off.
    """
    options.setdefault("file", sys.stderr)
    options.setdefault("dynamic_ncols", True)
    if not sys.stderr.isatty():
        options.setdefault("mininterval", 30)
    options.setdefault("disable", os.environ.get("EMMA_PROGRESS") == "0")
    return cast("tqdm[T]", tqdm(iterable, **options))
