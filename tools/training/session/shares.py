"""Files that all ranks read, each its share: the work on a thread, and the ranks in step with each other meanwhile.

Answers no seam: `Loading` and `Marks` call it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from emma.tools.runs.checksums import Advance

__all__ = ["Work", "gather", "read_together", "say"]

_SECONDS = 10.0
"""Between two lines of progress. The ranks also meet that often, so that the fast ones do not run into the time limit
of a collective."""


class Work[T]:
    """A share of the reading, on a thread of its own. hashlib, xxhash and reads let other threads run."""

    def __init__(self, read: Callable[[Advance], T]) -> None:
        self.bytes = 0
        self._lock = threading.Lock()
        pool = ThreadPoolExecutor(1)
        self._future: Future[T] = pool.submit(read, self._advance)
        pool.shutdown(wait=False)

    def _advance(self, size: int) -> None:
        with self._lock:
            self.bytes += size

    def ended(self, seconds: float | None = 0.0) -> bool:
        """Whether the work is over, after waiting for at most so many seconds (None: until it is)."""
        try:
            self._future.exception(seconds)
        except TimeoutError:
            return False
        return True

    def result(self) -> T:
        """What it found; raises what it raised."""
        return self._future.result()


def say(message: str) -> None:
    """Prints on rank 0."""
    if torch.distributed.get_rank() == 0:
        print(message, flush=True)


def gather[T](value: T) -> list[T]:
    """Every rank's value, in the order of ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def all_ended(work: Work[Any]) -> tuple[bool, int]:
    """Whether the work of all ranks is over, and the bytes that all have read; a collective."""
    state = torch.tensor([int(not work.ended()), work.bytes], dtype=torch.int64, device="cuda")
    torch.distributed.all_reduce(state)
    waiting, read = state.tolist()
    return waiting == 0, read


def read_together[T](read: Callable[[Advance], T], size: int, label: str) -> T:
    """Does this rank's share and waits for the others; a collective.

    Args:
        read: the work; calls its argument with the bytes that it has read.
        size: bytes over all ranks.
        label: begins each line of the log; the last one names the rate. Empty: no line.
    """
    work, begun = Work(read), time.perf_counter()
    while True:
        work.ended(_SECONDS)
        ended, done = all_ended(work)
        seconds = time.perf_counter() - begun
        if label and size:
            rate = f"{done / 2**30:,.2f} of {size / 2**30:,.2f} GiB in {seconds:,.1f} s"
            say(
                f"{label} {rate} ({done / 2**30 / seconds:,.2f} GiB/s over {torch.distributed.get_world_size()} ranks)"
            )
        if ended:
            return work.result()
