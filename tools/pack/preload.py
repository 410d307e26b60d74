"""Imported by the process that packing's workers are forked from: they start with the tokenizer engine that it has
loaded, and share its memory.

Nothing is encoded here, since an engine that has encoded holds threads, which don't survive a fork.
"""

from __future__ import annotations

import contextlib
import os

import orjson

from recipes.errors import UserError
from recipes.schema.model import Tokenizer
from tools.pack.engine import EngineName, load_engine
from tools.pack.tokenizer_file import tokenizer_of_process

__all__ = ["VARIABLE", "variable"]

VARIABLE = "EMMA_PACK_PRELOAD"


def variable(engine: EngineName, settings: Tokenizer, vocab_size: int) -> str:
    """Value of `VARIABLE` for an engine and a tokenizer."""
    return orjson.dumps([engine, settings.model_dump(mode="json"), vocab_size]).decode()


def _load() -> None:
    if VARIABLE in os.environ:
        engine, settings, vocab_size = orjson.loads(os.environ[VARIABLE])
        # A worker meets the same error where it can be reported.
        with contextlib.suppress(UserError):
            tokenizer = tokenizer_of_process(Tokenizer.model_validate(settings), vocab_size)
            load_engine(engine, tokenizer)


_load()
