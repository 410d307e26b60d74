"""Imported by the process that packing's workers are forked from: they start with the tokenizer engines it has
loaded, the fast one and the reference, and share their memory.

Nothing is encoded here: an engine that has encoded holds threads, which do not survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

import orjson

from emma.base.arrow import keep_pandas_out
from emma.base.processes import release_memory
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import PRELOAD_VARIABLE
from emma.tools.pack.engine import REFERENCE, load_engine, usable_engine
from emma.tools.pack.pieces import pieces_of
from emma.tools.pack.tokenizer_file import TokenizerFile, tokenizer_of_process

__all__ = ["load_engines"]

# What each worker would import by itself otherwise, NumPy's part at the first `unique`.
for _name in ("mmap", "multiprocessing.popen_forkserver", "multiprocessing.synchronize", "numpy.ma"):
    importlib.import_module(_name)


def load_engines(engine: str, file: TokenizerFile) -> None:
    """Loads a recipe's engine and the reference, and freezes what is loaded: the garbage collector would touch, and so
    copy, all of it in every worker. What fails to load is left to whoever needs it, and reports it."""
    with contextlib.suppress(Exception):
        file.check(keep_parsed=True)
        usable_engine(engine, file)
        load_engine(REFERENCE, file)
        pieces_of(file)
        file.forget_ids()
    release_memory()
    gc.freeze()


keep_pandas_out()
if PRELOAD_VARIABLE in os.environ:
    _value = orjson.loads(os.environ[PRELOAD_VARIABLE])
    load_engines(
        _value["engine"],
        tokenizer_of_process(Tokenizer.model_validate(_value["tokenizer"]), _value["vocab_size"]),
    )
