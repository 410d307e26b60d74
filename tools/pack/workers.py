"""The processes that pack: each is forked from one that has loaded the tokenizer engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from emma.base.processes import RenewedProcesses, fork_forkserver, process_pool, result_of
from emma.tools.pack import PRELOAD_VARIABLE
from emma.tools.pack.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from emma.recipes.schema.model import Tokenizer
    from emma.tools.pack.inputs import Unit
    from emma.tools.pack.plan import PackSettings

__all__ = ["read_tokenizer", "renew_after", "start_workers", "worker_pool"]

_PRELOAD = ("emma.tools.pack.gate", "emma.tools.pack.unit", "emma.tools.pack.preload")
# An engine caches words, so memory would grow with the text: a process that has packed this much is replaced,
# which is cheaper than loading the engine again.
_BYTES_A_PROCESS = 160 << 20
_TASKS = 16  # until it is known how large they are
_MANY = 8  # of which one more makes little difference


def _environment(value: dict[str, Any]) -> dict[str, str]:
    return {PRELOAD_VARIABLE: orjson.dumps(value).decode()}


def start_workers(settings: PackSettings) -> None:
    """Forks a process off this one that reads the tokenizer and loads the engines, while this one goes on; a later
    `worker_pool` uses it."""
    # Within a program that has threads, the first pool starts that process anew.
    if threading.active_count() == 1:
        fork_forkserver(partial(_load, settings))


def _load(settings: PackSettings) -> None:
    import pyarrow as pa

    from emma.tools.pack.preload import load_engines

    # pyarrow has read its variable already.
    if os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system":
        pa.set_memory_pool(pa.system_memory_pool())
    load_engines(settings.pack.engine, settings.tokenizer.keep())


def read_tokenizer(tokenizer: TokenizerFile, pool: Executor) -> None:
    """Gives this process's tokenizer what a process of the pool has read of the file.

    Raises:
        UserError: it cannot be read, or its document boundaries or ids don't fit the model.
    """
    if not tokenizer.is_read:
        tokenizer.adopt(result_of(pool.submit(TokenizerFile.read, tokenizer)))
    tokenizer.check()


def renew_after(pool: Executor, units: Sequence[Unit], workers: int) -> None:
    """Lets a pool replace a process when it has packed about 160 MiB; no process is started for a few last units.

    Args:
        pool: of `worker_pool`.
        units: what is to be packed.
        workers: processes.
    """
    if isinstance(pool, RenewedProcesses):
        most = max(1, _BYTES_A_PROCESS // max([1, *(unit.bytes for unit in units)]))
        each = -(-len(units) // workers)
        tasks = -(-each // -(-each // most)) if each else 1
        # One that is done early takes one more.
        pool.renew_after(tasks + (most >= _MANY))


def worker_pool(
    workers: int, engine: str, tokenizer: Tokenizer, vocab_size: int
) -> AbstractContextManager[Executor]:
    """Processes that pack units; with 1, this process packs. Never submit more tasks than there are processes.

    Args:
        workers: processes.
        engine: the recipe's `data.pack.engine`.
        tokenizer: the recipe's `model.tokenizer`.
        vocab_size: the recipe's `model.vocab_size`.
    """
    value = {"engine": engine, "tokenizer": tokenizer.model_dump(mode="json"), "vocab_size": vocab_size}
    return process_pool(workers, preload=_PRELOAD, tasks=_TASKS, environment=_environment(value))
