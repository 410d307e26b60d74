"""The processes that pack: each is forked from one that has loaded the tokenizer engine."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from emma.base.processes import fork_forkserver, process_pool
from emma.tools.pack import PRELOAD_VARIABLE

if TYPE_CHECKING:
    from emma.recipes.schema.model import Tokenizer
    from emma.tools.pack.plan import PackSettings

__all__ = ["start_workers", "worker_pool"]

_PRELOAD = ("emma.tools.pack.gate", "emma.tools.pack.unit", "emma.tools.pack.preload")
# An engine caches words, so memory would grow with the text: a process that has packed this much is replaced,
# which is cheaper than loading the engine again.
_BYTES_A_PROCESS = 128 << 20


def _environment(value: dict[str, Any]) -> dict[str, str]:
    return {PRELOAD_VARIABLE: orjson.dumps(value).decode()}


def start_workers(settings: PackSettings) -> None:
    """Forks a process off this one that loads the engines, while this one goes on; a later `worker_pool` uses it.

    Args:
        settings: what will be packed; the tokenizer's file is read here, once for all processes.
    """
    settings.tokenizer.check(keep_parsed=True)
    # Within a program that has threads, the first pool starts that process anew.
    if threading.active_count() == 1:
        fork_forkserver(partial(_load, settings))
    settings.tokenizer.drop_parsed()


def _load(settings: PackSettings) -> None:
    import pyarrow as pa

    from emma.tools.pack.preload import load_engines

    # pyarrow has read its variable already.
    if os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system":
        pa.set_memory_pool(pa.system_memory_pool())
    load_engines(settings.pack.engine, settings.tokenizer.keep())


def worker_pool(
    workers: int, engine: str, tokenizer: Tokenizer, vocab_size: int, *, largest_unit: int = _BYTES_A_PROCESS
) -> AbstractContextManager[Executor]:
    """Processes that pack units; with 1, this process packs. Never submit more tasks than there are processes.

    Args:
        workers: processes.
        engine: the recipe's `data.pack.engine`.
        tokenizer: the recipe's `model.tokenizer`.
        vocab_size: the recipe's `model.vocab_size`.
        largest_unit: input bytes of the largest unit; a process packs about 128 MiB.
    """
    value = {"engine": engine, "tokenizer": tokenizer.model_dump(mode="json"), "vocab_size": vocab_size}
    tasks = max(1, round(_BYTES_A_PROCESS / max(largest_unit, 1)))
    return process_pool(workers, preload=_PRELOAD, tasks=tasks, environment=_environment(value))
