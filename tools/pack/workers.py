"""The processes that pack: each is forked from one that has loaded the tokenizer engine."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager

import orjson

from recipes.schema.model import Tokenizer
from tools.processes import process_pool, start_forkserver

__all__ = ["VARIABLE", "start_workers", "worker_pool"]

VARIABLE = "EMMA_PACK_PRELOAD"
_PRELOAD = ("tools.pack.run", "tools.pack.preload")
_UNITS_A_PROCESS = 2


def _environment(engine: str, tokenizer: Tokenizer, vocab_size: int) -> Mapping[str, str]:
    """What `tools.pack.preload` reads."""
    return {VARIABLE: orjson.dumps([engine, tokenizer.model_dump(mode="json"), vocab_size]).decode()}


def start_workers(engine: str, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Lets the engine be loaded while the caller goes on; `worker_pool` with the same arguments has it then.

    Args:
        engine: the recipe's `data.pack.engine`.
        tokenizer: the recipe's `model.tokenizer`.
        vocab_size: the recipe's `model.vocab_size`.
    """
    start_forkserver(_PRELOAD, _environment(engine, tokenizer, vocab_size))


def worker_pool(
    workers: int, engine: str, tokenizer: Tokenizer, vocab_size: int
) -> AbstractContextManager[Executor]:
    """Processes that pack units; 1 works in this one. Further arguments: see `start_workers`."""
    # An engine keeps the words that it has met, so that memory would grow with the text; a process is soon forked.
    return process_pool(
        workers,
        preload=_PRELOAD,
        tasks=_UNITS_A_PROCESS,
        environment=_environment(engine, tokenizer, vocab_size),
    )
