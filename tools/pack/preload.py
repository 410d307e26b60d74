"""Imported by the process that packing's workers are forked from: they start with the tokenizer engines it has
loaded, the fast one and the reference, and share their memory.

Nothing is encoded here: an engine that has encoded holds threads, which do not survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any

import orjson

from emma.base.arrow import keep_pandas_out
from emma.recipes.load import load_recipe
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import PRELOAD_VARIABLE
from emma.tools.pack.engine import REFERENCE, load_engine, usable_engine
from emma.tools.pack.pieces import pieces_of
from emma.tools.pack.tokenizer_file import tokenizer_of_process

__all__: list[str] = []


def _load(value: dict[str, Any]) -> None:
    """Loads the engine that `value` names (see `PRELOAD_VARIABLE`)."""
    if "run" in value:
        recipe = load_recipe(value["run"], value["overrides"])
        engine, tokenizer, vocab_size = (
            recipe.data.pack.engine,
            recipe.model.tokenizer,
            recipe.model.vocab_size,
        )
    else:
        tokenizer = Tokenizer.model_validate(value["tokenizer"])
        engine, vocab_size = value["engine"], value["vocab_size"]
    file = tokenizer_of_process(tokenizer, vocab_size)
    usable_engine(engine, file)
    load_engine(REFERENCE, file)
    pieces_of(file)


keep_pandas_out()
if PRELOAD_VARIABLE in os.environ:
    # A worker, or the command itself, meets the same error and reports it.
    with contextlib.suppress(Exception):
        _load(orjson.loads(os.environ[PRELOAD_VARIABLE]))
# Frozen: the garbage collector would touch, and so copy, all of it in every worker.
gc.freeze()
