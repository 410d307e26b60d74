"""The server behind tests/ranks.py: imports torch and Megatron, then forks ranks as it is told. One thread only, since
a fork copies no other."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from tests.ports import free_port

PR_SET_PDEATHSIG = 1

# What a rank of the trainer would otherwise import itself, at seconds each time.
_IMPORTED_ONCE = (
    "megatron.training",
    "megatron.core.models.gpt",
    "megatron.core.datasets.gpt_dataset",
    "megatron.core.tokenizers.text",
)


class Server:
    """Holds the connection to the tests, and the ranks that run."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Holds the queues of the ranks' checkpoint writers. A rank by itself starts a process for that, which imports torch.
        self._queues = get_context("spawn").Manager()
        self._running: dict[int, tuple[int, int]] = {}  # pid → (job, rank)

    def serve(self) -> None:
        """Answers messages and reports ends of ranks until the other side closes; then kills what runs."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # The end of a rank wakes the wait below through this pipe.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer)
        self._connection.send(("ready",))
        try:
            while True:
                ready = wait([self._connection, reader])
                if reader in ready:
                    os.read(reader, 4096)
                self._reap()
                if self._connection in ready:
                    self._answer(*self._connection.recv())
        except (EOFError, ConnectionError):
            for pid in self._running:
                _kill(pid)

    def _answer(self, kind: str, job: int, *rest: Any) -> None:
        if kind == "start":
            self._start(job, *rest)
        elif kind == "signal":
            rank, number = rest
            for pid, (its_job, its_rank) in self._running.items():
                if its_job == job and rank in (None, its_rank):
                    os.kill(pid, number)
        elif kind == "kill":
            for pid, (its_job, _) in self._running.items():
                if its_job == job:
                    _kill(pid)

    def _start(
        self,
        job: int,
        folder: Path,
        call: tuple[str, str, bytes],
        world_size: int,
        env: dict[str, str],
        patched: bool,
    ) -> None:
        fault = _unsafe_to_fork()
        if fault:
            self._connection.send(("error", fault))
            return
        port = free_port()
        pids = []
        for rank in range(world_size):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world_size,
                "LOCAL_WORLD_SIZE": world_size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            (folder / f"rank-{rank}.log").touch()
            pid = os.fork()
            if pid == 0:
                self._connection.close()
                environment = {key: str(value) for key, value in place.items()} | env
                _be_rank(rank, folder, call, environment, patched, self._queues)
            self._running[pid] = (job, rank)
            pids.append(pid)
        self._connection.send(("started", job, pids))

    def _reap(self) -> None:
        for pid in list(self._running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                job, rank = self._running.pop(pid)
                # Workers that the rank left behind share its process group.
                _kill(pid)
                self._connection.send(("exited", job, rank, os.waitstatus_to_exitcode(status)))


def _kill(pid: int) -> None:
    """Kills a rank with all its children; both may be gone already."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _unsafe_to_fork() -> str | None:
    """Returns what would make a forked rank misbehave: threads of the server, or CUDA in use."""
    import torch

    threads = [(Path(task) / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        return f"the server has {len(threads)} threads and cannot fork safely: {', '.join(threads)}"
    if torch.cuda.is_initialized():
        return "CUDA is initialised in the server, which cannot fork safely"
    return None


def _be_rank(
    rank: int,
    folder: Path,
    call: tuple[str, str, bytes],
    env: Mapping[str, str],
    patched: bool,
    queues: SyncManager,
) -> None:
    """Runs the function in this forked process; never returns."""
    code = 1
    try:
        os.setsid()
        # If the server dies, so do its ranks.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable()
        os.environ.update(env)
        from megatron.core.dist_checkpointing.strategies import filesystem_async

        filesystem_async._results_queue = queues.Queue()
        result = _call(call, patched)
        temporary = folder / f"rank-{rank}.partial"
        temporary.write_bytes(pickle.dumps(result))
        temporary.rename(folder / f"rank-{rank}.result")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == 0:
            (folder / f"rank-{rank}.result").write_bytes(pickle.dumps(None))
        elif not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  whatever a test's function raises belongs in the rank's output
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: the server's exit handlers are not the rank's.
        os._exit(code)


def _call(call: tuple[str, str, bytes], patched: bool) -> Any:
    import torch

    module, name, arguments = call
    if patched:
        from emma import megatron_patches

        megatron_patches.apply()
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    result = function(*pickle.loads(arguments))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return result


def main() -> None:
    """Entry point: `python -m tests.ranks_server SOCKET_FD`."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    connection = Connection(int(sys.argv[1]))
    from emma.megatron_patches.cpu_backend import hide_gpu_libraries

    hide_gpu_libraries()
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)
    server = Server(connection)
    # Megatron collects garbage around each save, which would scan a million objects of imported modules each time.
    gc.collect()
    gc.freeze()
    server.serve()


if __name__ == "__main__":
    main()
