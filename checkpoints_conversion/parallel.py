"""A few jobs on threads that stop together. Writing and hashing release Python's lock, so two cores do the
work of two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Advance", "run_jobs"]

Advance = Callable[[int], Any]


class _StoppedError(Exception):
    """Raised inside a job when another job has failed."""


def run_jobs[T](jobs: Sequence[Callable[[Advance], T]], threads: int, advance: Advance) -> list[T]:
    """Runs jobs and returns their results in order.

    Args:
        jobs: functions of `advance`. They call it often with the number of bytes done, which is where they
            can be stopped.
        threads: jobs that run at once.
        advance: receives the bytes of all jobs, one call at a time.

    Raises:
        Exception: the first failure. By then the other jobs have ended, also when the caller is interrupted.
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
