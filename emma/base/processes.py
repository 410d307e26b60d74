"""Processes that share a stage's work on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import arbitrary_address, wait  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, NoReturn

from emma.base.errors import UserError
from emma.base.sharing import umask

__all__ = [
    "RenewedProcesses",
    "available_cores",
    "end_with_parent",
    "follow_parent",
    "fork_forkserver",
    "memory",
    "process_pool",
    "release_memory",
    "result_of",
    "start_forkserver",
]

_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """Cores that this process may use (a Slurm task's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Total and available memory in bytes, limited by the container's; available is 0 where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0
    kibibytes = {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in meminfo.read_text().splitlines())
    }
    total, available = kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
        available = min(available, max(0, total - int(used.read_text())))
    return total, available


def release_memory() -> None:
    """Returns free memory to the system, which the C library would keep, and pyarrow's pool too: 60 MiB after a large file was
    parsed."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()


def end_with_parent() -> None:
    """Called in a `multiprocessing` child: ends it as soon as its parent is gone, for whatever reason.

    Without it, a child whose parent was killed with SIGKILL would wait for work forever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def follow_parent() -> Callable[[], None]:
    """What a command calls before it begins (`preexec_fn`), so that it gets SIGTERM once the thread that started it is gone,
    for whatever reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _begin(mask: int) -> None:
    os.umask(mask)
    end_with_parent()


class _ThisProcess(Executor):
    """Runs tasks in this process: one worker needs no other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the caller gets it from the future, as from another process
            future.set_exception(error)
        return future


class RenewedProcesses(Executor):
    """Processes that are started when there is work for them, and replaced after `tasks` tasks. A task submitted while
    none is idle waits for a busy one, so never submit more tasks than there are processes.

    The executor's own `max_tasks_per_child` can hang in Python 3.12.
    """

    def __init__(self, start: Callable[[], ProcessPoolExecutor], workers: int, tasks: int) -> None:
        self._start, self._tasks = start, tasks
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._futures: list[list[Future[Any]]] = [[] for _ in range(workers)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        waiting = [sum(not future.done() for future in futures) for futures in self._futures]
        place = min(range(len(waiting)), key=lambda place: (waiting[place], len(self._futures[place])))
        pool = self._pools[place]
        if pool is None or (not waiting[place] and len(self._futures[place]) >= self._tasks):
            pool = self._fresh(place)
        try:
            future = pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            # It was killed while it had no work, or whoever has its task is told.
            future = self._fresh(place).submit(fn, *args, **kwargs)
        self._futures[place].append(future)
        return future

    def renew_after(self, tasks: int) -> None:
        """Processes are replaced after this many tasks from now on."""
        self._tasks = tasks
        self._futures = [[future for future in futures if not future.done()] for futures in self._futures]

    def _fresh(self, place: int) -> ProcessPoolExecutor:
        """A new process, in place of the one that was there."""
        if (before := self._pools[place]) is not None:
            before.shutdown(wait=False)
        self._futures[place] = []
        self._pools[place] = fresh = self._start()
        return fresh

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in filter(None, self._pools):
            pool.shutdown(wait, cancel_futures=cancel_futures)


# One thread per process: the processes already share the cores.
_THREADS = {"RAYON_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Python 3.12 starts the process with the working folder first on the path: a user's own `numpy.py` or `emma/` would be
# imported there.
_PATH = {"PYTHONSAFEPATH": "1"}
# Batches are smaller than the first limit, so their memory is reused instead of being requested from the
# system page by page; larger blocks go back to the system when freed. Values set by the user are kept.
_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
# Numbers of these limits in mallopt(3).
_MALLOC = {-3: "MALLOC_MMAP_THRESHOLD_", -1: "MALLOC_TRIM_THRESHOLD_"}


def start_forkserver(preload: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Starts the process that workers are forked from, unless it runs already, without waiting for its
    imports: a caller that starts it early saves their time.

    Args:
        preload: modules that the work needs.
        environment: variables that are set while they are imported.
    """
    get_context("forkserver").set_forkserver_preload(list(preload))
    with _variables({**_MEMORY, **os.environ, **_THREADS, **_PATH, **(environment or {})}):
        forkserver.ensure_running()


def fork_forkserver(load: Callable[[], None]) -> None:
    """Starts the process that workers are forked from, unless it runs already, as a fork of this one: what this one has
    imported and read is not imported and read again. Without waiting, as `start_forkserver`.

    Only for a process that has done no work yet: threads do not survive a fork.

    Args:
        load: called in that process, once.
    """
    # What `multiprocessing.forkserver.ensure_running` does, but for starting a new interpreter.
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        return
    resource_tracker.ensure_running()
    with socket.socket(socket.AF_UNIX) as listener:
        address = arbitrary_address("AF_UNIX")
        listener.bind(address)
        if isinstance(address, str) and not address.startswith("\0"):
            Path(address).chmod(0o600)
        listener.listen()
        alive, held = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            _serve_forks(load, listener.detach(), alive, held)
        os.close(alive)
        server._forkserver_address, server._forkserver_alive_fd = address, held
        server._forkserver_pid = process


def _serve_forks(load: Callable[[], None], listener: int, alive: int, held: int) -> NoReturn:
    """Runs in the process that `fork_forkserver` starts, until all others have closed `held`."""
    code = 1
    try:
        os.close(held)
        # The C library has read its variables already.
        limit = getattr(ctypes.CDLL(None), "mallopt", None)
        for number, name in _MALLOC.items():
            if limit is not None and name not in os.environ:
                limit(number, int(_MEMORY[name]))
        os.environ.update({**_MEMORY, **os.environ, **_THREADS})
        load()
        forkserver.main(listener, alive, [])
    except (SystemExit, KeyboardInterrupt):
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may return from here into the parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


@contextmanager
def process_pool(
    workers: int,
    *,
    preload: Sequence[str],
    tasks: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Executor]:
    """Processes that end with their parent, forked from one that has imported what they need but done no
    work: thread pools (of tokenizer engines, of pyarrow) do not survive a fork.

    Args:
        workers: processes; with 1, this process does the work.
        preload: modules that the work needs.
        tasks: a process is started for its first task and replaced after this many, and no more tasks may be submitted
            than there are processes (`RenewedProcesses`); None: processes stay.
        environment: variables of the process that they are forked from. All pools of a process share it; the
            first pool, or `start_forkserver` or `fork_forkserver` before it, starts it.
    """
    if workers == 1:
        yield _ThisProcess()
        return
    context = get_context("forkserver")

    def start(processes: int = 1) -> ProcessPoolExecutor:
        start_forkserver(preload, environment)
        # The process that they are forked from may have been started under another umask.
        return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(umask(),))

    pool = start(workers) if tasks is None else RenewedProcesses(start, workers, tasks)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables within the block."""
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
        UserError: the process was killed.
    """
    try:
        return task.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?); run the same command again with fewer --workers; "
            "it continues where it stopped"
        ) from None
