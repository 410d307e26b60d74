"""Work on all cores, in order, with no more of it in memory than the cores work on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from emma.base.processes import available_cores

__all__ = ["in_order", "threads"]

_MOST = 8
"""Threads hold a few dozen MiB each, so their number is limited: the memory must not grow with the machine."""


def threads() -> int:
    """Threads that share a step's work."""
    return min(available_cores(), _MOST)


def in_order[T, R](
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int | None = None,
    initializer: Callable[[], None] | None = None,
    ahead: int = 0,
) -> Iterator[R]:
    """Yields the function's results in the order of the items, computed by `workers` threads (by default `threads()`), each
    of which calls the `initializer` first. They get as many items ahead of who takes the results, and `ahead` more.

    NumPy and torch release the GIL while they sort, multiply, gather, count, read and write, so every thread gets a core.
    Exceptions of the function are raised here.
    """
    waiting: deque[Future[R]] = deque()
    workers = workers or threads()
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
