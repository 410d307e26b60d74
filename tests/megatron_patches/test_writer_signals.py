"""The checkpoint writer's queue after a stop signal to the whole process group."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

from tests.ranks import run_ranks, start_ranks


def stop_and_put(when: str) -> tuple[int, list[int]]:
    """Starts the queue, sends SIGTERM to the rank's process group, as torchrun does, and puts and gets a
    value.

    Returns:
        The value, and the signals that the rank itself got.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    # The queue of a separate rank, not of the server that the tests' ranks share.
    filesystem_async._results_queue = None
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    if when == "meanwhile":
        threading.Timer(0.1, os.killpg, (0, signal.SIGTERM)).start()
    queue = filesystem_async.get_write_results_queue()
    if when == "after":
        os.killpg(0, signal.SIGTERM)
    time.sleep(0.5)
    queue.put(7)
    return queue.get(timeout=10), received


def start_queue_and_die(file: str) -> None:
    """Writes the queue's server's process id into a file and gets SIGKILL."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = None
    before = {child.pid for child in multiprocessing.active_children()}
    filesystem_async.get_write_results_queue()
    (server,) = {child.pid for child in multiprocessing.active_children()} - before
    Path(file).write_text(str(server))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_rank_leaves_no_server(tmp_path: Path) -> None:
    file = tmp_path / "server"
    (outcome,) = start_ranks(start_queue_and_die, 1, str(file)).outcomes(timeout=60)
    assert outcome.exit_code == -signal.SIGKILL
    server = Path(f"/proc/{file.read_text()}")
    end = time.monotonic() + 20
    while server.exists() and "State:\tZ" not in (server / "status").read_text():
        assert time.monotonic() < end, "the server outlived its rank"
        time.sleep(0.05)


def test_without_the_patch_the_queue_is_gone() -> None:
    (outcome,) = start_ranks(stop_and_put, 1, "after", patched=False).outcomes(timeout=60)
    assert outcome.exit_code != 0
    # Which one depends on how far the server had come when it died.
    lost = ("BrokenPipeError", "ConnectionResetError", "ConnectionRefusedError", "EOFError")
    assert any(error in outcome.output for error in lost), outcome.output


def test_the_queue_survives_and_the_rank_gets_the_signal() -> None:
    assert run_ranks(stop_and_put, 1, "after") == [(7, [signal.SIGTERM])]
    assert run_ranks(stop_and_put, 1, "meanwhile") == [(7, [signal.SIGTERM])]


def own_queue(asynchronous: bool) -> tuple[int, int]:
    """Puts and gets a value as a run's rank; returns it, and how many processes that took."""
    from types import SimpleNamespace

    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.training import global_vars

    filesystem_async._results_queue = None
    global_vars._GLOBAL_ARGS = SimpleNamespace(async_save=asynchronous)
    before = len(multiprocessing.active_children())
    queue = filesystem_async.get_write_results_queue()
    queue.put(7)
    return queue.get_nowait(), len(multiprocessing.active_children()) - before


def test_a_rank_that_writes_by_itself_starts_no_server() -> None:
    assert run_ranks(own_queue, 1, False) == [(7, 0)]
    assert run_ranks(own_queue, 1, True) == [(7, 1)]
