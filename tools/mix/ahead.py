"""Produces the next item while the current one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["ahead"]

_END: Any = object()


def ahead[T](items: Iterable[T]) -> Iterator[T]:
    """Yields the items of an iterable; a thread produces them, one ahead.

    NumPy releases the GIL while it sorts, gathers and writes, so both threads get a core. Exceptions from the
    iterable are raised here.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque([thread.submit(next, iterator, _END)])
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, iterator, _END))
            yield item
