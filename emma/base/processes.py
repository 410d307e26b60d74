"""Processes that share a stage's work on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from emma.base.errors import UserError

__all__ = ["available_cores", "end_with_parent", "process_pool", "result_of", "start_forkserver"]


def available_cores() -> int:
    """Cores that this process may use (a Slurm task's share, not the machine's)."""
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: ends it as soon as its parent is gone, however that ended.

    Without it, a process whose parent got SIGKILL waits for work for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _ThisProcess(Executor):
    """Does the work where it is called: one worker needs no other process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the caller gets it from the future, as from another process
            future.set_exception(error)
        return future


class _Renewed(Executor):
    """Processes that are replaced by fresh ones after some tasks. A task that is submitted while no process is idle waits
    for one that is busy, so there should never be more tasks than processes.

    The executor's own `max_tasks_per_child` can hang in Python 3.12.
    """

    def __init__(self, start: Callable[[], ProcessPoolExecutor], workers: int, tasks: int) -> None:
        self._start, self._tasks = start, tasks
        self._pools = [start() for _ in range(workers)]
        self._futures: list[list[Future[Any]]] = [[] for _ in range(workers)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        waiting = [sum(not future.done() for future in futures) for futures in self._futures]
        place = min(range(len(waiting)), key=lambda place: (waiting[place], len(self._futures[place])))
        if not waiting[place] and len(self._futures[place]) >= self._tasks:
            self._pools[place].shutdown(wait=False)
            self._pools[place], self._futures[place] = self._start(), []
        future = self._pools[place].submit(fn, *args, **kwargs)
        self._futures[place].append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


# One thread a process: the processes share the cores already.
_THREADS = {"RAYON_NUM_THREADS": "1"}
# Python 3.12 starts the process with the working folder first on the path: a user's own `numpy.py` or `emma/` would be
# imported there.
_PATH = {"PYTHONSAFEPATH": "1"}
# Batches are smaller than the first limit, so that their memory is used again instead of being asked from the system page
# by page; what is larger goes back to it when it is freed. Values that the user has set stay.
_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}


def start_forkserver(preload: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Starts the process that workers are forked from, unless there is one, and doesn't wait for its imports. A caller
    who knows early what the work needs wins the time that they take.

    Args:
        preload: modules that the work needs.
        environment: variables that they see as they are imported.
    """
    get_context("forkserver").set_forkserver_preload(list(preload))
    with _variables({**_MEMORY, **os.environ, **_THREADS, **_PATH, **(environment or {})}):
        forkserver.ensure_running()


@contextmanager
def process_pool(
    workers: int,
    *,
    preload: Sequence[str],
    tasks: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Executor]:
    """Processes that end when their parent does, forked from one that has imported what they need and worked on nothing
    yet: thread pools (of tokenizer engines, of pyarrow) don't survive a fork.

    Args:
        workers: processes; 1 works in this one.
        preload: modules that the work needs.
        tasks: a process is replaced by a fresh one after so many; no more tasks may then be submitted than there are
            processes. None: processes stay.
        environment: variables that the process they are forked from sees as it starts; there is one for all pools of a
            process, and the first pool, or `start_forkserver` before it, starts it.
    """
    if workers == 1:
        yield _ThisProcess()
        return
    context = get_context("forkserver")

    def start(processes: int = 1) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)

    start_forkserver(preload, environment)
    pool = start(workers) if tasks is None else _Renewed(start, workers, tasks)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
