"""pyarrow without pandas."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa

__all__ = ["keep_pandas_out"]


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
