"""Multi-rank tests without paying Megatron's import for each: a server imports torch and Megatron once, and forks the
ranks of every job.

    def losses(steps): ...                       # a top-level function of an importable module

    def test_two_ranks():
        first, second = run_ranks(losses, 2, 10, timeout=60)

    def test_killed():
        job = start_ranks(losses, 2, 10)
        job.signal(signal.SIGTERM)
        assert [outcome.exit_code for outcome in job.outcomes(timeout=60)] == [0, 0]

The function runs in every rank, with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set,
one thread, no GPU (CUDA_VISIBLE_DEVICES is empty), its own output file, and `megatron_patches` applied;
`patched=False` leaves them out, for tests that show what goes wrong without them. Arguments and results are pickled.
The server starts with the first job of a session and ends with it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Job", "Outcome", "RanksError", "RanksServer", "run_ranks", "start_ranks"]

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 240.0  # importing Megatron takes 13 s on an idle machine
GRACE_SECONDS = 2.0  # between the first rank's failure and the end of the others
TAIL_LINES = 60


class RanksError(AssertionError):
    """A rank failed or the time was up; the message holds the end of the first failing rank's output."""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended. `exit_code` is negative for a signal; `result` is None unless the code is 0."""

    rank: int
    exit_code: int
    result: Any
    output: str


class Job:
    """The ranks of one call, running."""

    def __init__(self, server: RanksServer, number: int, name: str, folder: Path, pids: list[int]) -> None:
        self._server, self._number, self._name = server, number, name
        self.folder, self.pids = folder, pids
        self.exit_codes: dict[int, int] = {}  # in the order in which the ranks ended

    def output(self, rank: int) -> str:
        """Returns what the rank has written to stdout and stderr so far."""
        return (self.folder / f"rank-{rank}.log").read_text(errors="replace")

    def signal(self, number: signal.Signals, rank: int | None = None) -> None:
        """Sends a signal to one rank or to all that still run (to the rank's process, not to its children)."""
        self._server.send(("signal", self._number, rank, int(number)))

    def wait_for(self, text: str, rank: int = 0, timeout: float = 60.0) -> None:
        """Returns as soon as the rank's output holds `text`; RanksError if the rank ends or time passes before."""
        deadline = time.monotonic() + timeout
        while text not in self.output(rank):
            self._server.receive(0.05)
            if text in self.output(rank):
                return
            if rank in self.exit_codes or time.monotonic() > deadline:
                self._end()
                raise RanksError(f"{self._name}: rank {rank} never wrote {text!r}\n{self._tail(rank)}")

    def outcomes(self, timeout: float = 120.0) -> list[Outcome]:
        """Waits for all ranks and returns how they ended, failures included.

        Once a rank has failed the others get two seconds. Raises RanksError if the time is up.
        """
        deadline, failed_at = time.monotonic() + timeout, None
        while len(self.exit_codes) < len(self.pids):
            self._server.receive(0.1)
            now = time.monotonic()
            if failed_at is None and any(self.exit_codes.values()):
                failed_at = now
            if failed_at is not None and now > failed_at + GRACE_SECONDS:
                self._end()
            if now > deadline:
                running = [rank for rank in range(len(self.pids)) if rank not in self.exit_codes]
                # faulthandler answers SIGABRT with the Python stack.
                self._server.send(("signal", self._number, None, int(signal.SIGABRT)))
                time.sleep(0.5)
                self._end()
                tails = "\n".join(self._tail(rank) for rank in running)
                raise RanksError(f"{self._name}: ranks {running} still ran after {timeout:.0f} s\n{tails}")
        return [self._outcome(rank) for rank in range(len(self.pids))]

    def wait(self, timeout: float = 120.0) -> list[Any]:
        """Waits for all ranks and returns their results; RanksError if one of them failed."""
        outcomes = self.outcomes(timeout)
        for rank, code in self.exit_codes.items():
            if code:
                raise RanksError(f"{self._name}: rank {rank} ended with exit code {code}\n{self._tail(rank)}")
        return [outcome.result for outcome in outcomes]

    def _outcome(self, rank: int) -> Outcome:
        code, result = self.exit_codes[rank], None
        if code == 0:
            result = pickle.loads((self.folder / f"rank-{rank}.result").read_bytes())
        return Outcome(rank, code, result, self.output(rank))

    def _tail(self, rank: int) -> str:
        lines = self.output(rank).splitlines()[-TAIL_LINES:]
        return "\n".join([f"--- rank {rank}, last {len(lines)} lines ---", *lines])

    def _end(self) -> None:
        """Kills what still runs, including children, and waits until it is gone."""
        self._server.send(("kill", self._number))
        while len(self.exit_codes) < len(self.pids):
            self._server.receive(1.0)


class RanksServer:
    """The client's side of the server process. One thread only."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        self._log = self._folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.ranks_server", str(theirs.fileno())],
                cwd=ROOT,
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._jobs: dict[int, Job] = {}
        self._started: tuple[int, list[int]] | None = None
        self._ready = False
        deadline = time.monotonic() + START_SECONDS
        while not self._ready:
            self.receive(1.0)
            if time.monotonic() > deadline:
                self.close()
                raise RanksError(f"the server of the ranks was not ready after {START_SECONDS:.0f} s")

    def start(
        self,
        function: Callable[..., Any],
        world_size: int,
        *args: Any,
        env: Mapping[str, str] | None = None,
        patched: bool = True,
    ) -> Job:
        """Starts `function(*args)` in `world_size` ranks; see `start_ranks`."""
        number = len(self._jobs)
        name = f"{function.__module__}.{function.__qualname__}"
        folder = self._folder / f"job-{number}"
        folder.mkdir()
        self._started = None
        call = (function.__module__, function.__qualname__, pickle.dumps(args))
        self.send(("start", number, folder, call, world_size, dict(env or {}), patched))
        # Filled in before the reply is read: a rank's end may follow right after it.
        job = self._jobs[number] = Job(self, number, name, folder, [])
        while self._started is None:
            self.receive(10.0)
        job.pids = self._started[1]
        return job

    def send(self, message: tuple[Any, ...]) -> None:
        """Sends one message to the server."""
        self._connection.send(message)

    def receive(self, timeout: float) -> None:
        """Takes in the messages that come within `timeout` seconds, at least waiting for the first."""
        while self._connection.poll(timeout):
            timeout = 0.0
            try:
                kind, *rest = self._connection.recv()
            except EOFError as error:
                text = self._log.read_text(errors="replace")[-6000:]
                self.close()
                raise RanksError(f"the server of the ranks has died:\n{text}") from error
            if kind == "ready":
                self._ready = True
            elif kind == "started":
                self._started = (rest[0], rest[1])
            elif kind == "exited":
                number, rank, code = rest
                self._jobs[number].exit_codes[rank] = code
            else:
                raise RanksError(f"the server of the ranks says: {rest[0]}")

    def close(self) -> None:
        """Ends the server, which kills what runs, and removes its files."""
        self._connection.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


_server: RanksServer | None = None


def start_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    env: Mapping[str, str] | None = None,
    patched: bool = True,
) -> Job:
    """Starts `function(*args)` in `world_size` ranks and returns at once.

    Args:
        function: a top-level function of a module that can be imported from the repository's root.
        world_size: number of ranks.
        *args: picklable arguments, the same for every rank.
        env: further environment variables of the ranks.
        patched: apply `megatron_patches` in the ranks first.
    """
    global _server
    if _server is None:
        _server = RanksServer()
        atexit.register(_server.close)
    return _server.start(function, world_size, *args, env=env, patched=patched)


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    patched: bool = True,
) -> list[Any]:
    """Runs `function(*args)` in `world_size` ranks and returns their results, rank by rank; see `start_ranks`.

    Raises:
        RanksError: a rank failed, or `timeout` seconds passed; the others have been killed.
    """
    return start_ranks(function, world_size, *args, env=env, patched=patched).wait(timeout)
