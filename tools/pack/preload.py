"""Imported by the process that packing's workers are forked from: they start with the tokenizer engine that it has
loaded, and share its memory.

Nothing is encoded here, since an engine that has encoded holds threads, which don't survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import os

import orjson

from recipes.errors import UserError
from recipes.schema.model import Tokenizer
from tools.arrow import keep_pandas_out
from tools.pack.engine import choose_engine, load_engine
from tools.pack.tokenizer_file import tokenizer_of_process
from tools.pack.workers import VARIABLE

__all__: list[str] = []


def _load() -> None:
    if VARIABLE in os.environ:
        engine, settings, vocab_size = orjson.loads(os.environ[VARIABLE])
        # A worker meets the same error where it can be reported.
        with contextlib.suppress(UserError):
            tokenizer = tokenizer_of_process(Tokenizer.model_validate(settings), vocab_size)
            load_engine(choose_engine(engine), tokenizer)


keep_pandas_out()
_load()
# What is loaded stays: looking through it for garbage would copy it into every worker.
gc.freeze()
