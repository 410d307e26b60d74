"""A helper process of the checkpoint writer dies of the signal that asks its rank to save and stop, and
outlives a rank that is killed; where the rank itself writes, it needs none."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from queue import SimpleQueue
from typing import Any

from emma.base.processes import end_with_parent
from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH", "shielded"]

QUEUE = Target(
    "megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue", "mp_mode"
)

# What launchers send to all processes of a rank to stop a run: torchrun to the rank's process group, Slurm to
# everything in the job step.
_STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def condition(machine: Machine) -> Decision:
    """On everywhere."""
    return Decision(True, "a stopped run must save, even if it has saved before")


def shielded(get_queue: Callable[..., Any]) -> Callable[..., Any]:
    """`get_write_results_queue` whose server process starts with the stop signals blocked.

    A rank that saves by itself has its results in a queue of its own instead: a server would import torch again.
    Otherwise the first save starts a server that holds the writers' queue as long as the rank lives. Blocked signals
    are inherited, so the server never sees them; the rank gets those that arrived meanwhile once the server
    has started. The server still ends with the rank, even by SIGKILL, after which it would otherwise wait
    forever.
    """

    def get_write_results_queue(mp_mode: str = "spawn") -> Any:
        if _writes_itself():
            return SimpleQueue()
        # Python's resource tracker unblocks SIGTERM when it starts, so it must be running before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            with _servers_that_end_with_their_parent():
                return get_queue(mp_mode)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return get_write_results_queue


def _writes_itself() -> bool:
    """Whether no other process writes checkpoints; without a run's arguments nobody says so."""
    from megatron.training import global_vars

    arguments = global_vars._GLOBAL_ARGS
    return arguments is not None and not arguments.async_save


@contextlib.contextmanager
def _servers_that_end_with_their_parent() -> Iterator[None]:
    start = SyncManager.start
    SyncManager.start = functools.partialmethod(start, initializer=end_with_parent)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        SyncManager.start = start  # type: ignore[method-assign]


PATCH = Patch(
    name="writer-survives-stop-signals",
    targets=(QUEUE,),
    versions={"megatron-core": ("0.19.2",)},
    reason="SIGTERM to a rank's process group kills the server of the writers' queue, and the save at the stop fails; "
    "after SIGKILL of a rank the server stays",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/dist_checkpointing/strategies/filesystem_async.py",
    condition=condition,
    install=lambda: QUEUE.replace(shielded(QUEUE.get())),
)
