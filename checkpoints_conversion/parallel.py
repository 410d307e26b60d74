"""A few jobs on threads, stopped together: writing and hashing leave Python's lock, so two cores work as two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Advance", "run_jobs"]

Advance = Callable[[int], Any]


class _StoppedError(Exception):
    """Raised inside a job whose sibling has failed."""


def run_jobs[T](jobs: Sequence[Callable[[Advance], T]], threads: int, advance: Advance) -> list[T]:
    """Runs jobs and returns their results in order.

    Args:
        jobs: functions of `advance`, which they call with the bytes done, often: that is where they can be stopped.
        threads: jobs that run at once.
        advance: gets the bytes of all jobs, one call at a time.

    Raises:
        Exception: the first failure. The other jobs have ended by then; so too when the caller is interrupted.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def step(size: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        with lock:
            advance(size)

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(job, step) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, _StoppedError):
                raise
            faults = (future.exception() for future in futures if not future.cancelled())
            raise next(f for f in faults if f is not None and not isinstance(f, _StoppedError)) from None
