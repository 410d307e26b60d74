"""Processes that share a stage's work on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from recipes.errors import UserError
from recipes.processes import end_with_parent

__all__ = ["available_cores", "process_pool", "result_of"]


def available_cores() -> int:
    """Cores that this process may use (a Slurm task's share, not the machine's)."""
    return len(os.sched_getaffinity(0))


class _ThisProcess(Executor):
    """Does the work where it is called: one worker needs no other process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the caller gets it from the future, as from another process
            future.set_exception(error)
        return future


@contextmanager
def process_pool(workers: int, *, preload: Sequence[str]) -> Iterator[Executor]:
    """Processes that end when their parent does, forked from one that has imported what they need and done nothing yet:
    thread pools (of tokenizer engines, of pyarrow) don't survive a fork.

    Args:
        workers: processes; 1 works in this one.
        preload: modules that the work needs.
    """
    if workers == 1:
        yield _ThisProcess()
        return
    previous = os.environ.get("RAYON_NUM_THREADS")
    # One thread a process: the processes share the cores already.
    os.environ["RAYON_NUM_THREADS"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        if previous is None:
            del os.environ["RAYON_NUM_THREADS"]
        else:
            os.environ["RAYON_NUM_THREADS"] = previous


def result_of[T](task: Future[T]) -> T:
    """A task's result.

    Raises:
        UserError: a process was killed from outside.
    """
    try:
        return task.result()
    except BrokenProcessPool:
        raise UserError(
            "a working process was killed (out of memory?); run the same command again to go on, with fewer --workers"
        ) from None
