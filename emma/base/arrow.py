"""pyarrow without pandas, and its memory."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa

__all__ = ["keep_pandas_out", "use_jemalloc"]


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is kept out", name="pandas")


def keep_pandas_out() -> None:
    """Keeps pyarrow from importing pandas in this process, unless it has been imported already.

    Wherever pandas is installed (lm-eval needs it), pyarrow imports it to convert the first list or NumPy
    array, only to check whether it is a pandas object: half a second and 50 MiB in every process. Until
    something asks for pandas itself (`to_pandas()`), pyarrow does not recognise its objects (`pandas.NA`, a
    categorical series): use this only in processes that have none.
    """
    if "pandas" not in sys.modules:
        finder = _NoPandas()
        sys.meta_path.insert(0, finder)
        try:
            pa.array([])  # pyarrow looks for pandas only once
        finally:
            sys.meta_path.remove(finder)


def use_jemalloc() -> None:
    """Lets pyarrow, where it was built so, get memory from jemalloc, here and in processes started from here; the
    environment's `ARROW_DEFAULT_MEMORY_POOL` wins.

    For work in batches, many small objects among which are kept: the C library holds on to what is free between these, with
    batches of 1 MiB 50 MiB a process, jemalloc to half of it. It has the memory for the next batch at hand all the same.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ and "jemalloc" in pa.supported_memory_backends():
        os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "jemalloc"
        pa.set_memory_pool(pa.jemalloc_memory_pool())
