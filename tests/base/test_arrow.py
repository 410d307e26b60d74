from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("pandas")

CONVERT = """
import sys
import numpy as np, pyarrow as pa
{before}
pa.array([1, 2]); pa.array(np.arange(3)); pa.table({{"a": ["x"]}}).to_pylist()
print("pandas" in sys.modules)
{after}
"""
KEEP_OUT = "from emma.base.arrow import keep_pandas_out; keep_pandas_out()"


def output(before: str = "", after: str = "") -> str:
    script = CONVERT.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def test_arrow_converts_without_pandas() -> None:
    assert output() == "True\n", "pyarrow no longer imports pandas: emma.base.arrow can go"
    assert output(KEEP_OUT, "import pandas; print(pandas.Series([1]).sum())") == "False\n1\n"


def test_pandas_that_was_there_before_still_works() -> None:
    after = "print(len(pa.table({'a': [1, 2]}).to_pandas()))"
    assert output(f"import pandas; {KEEP_OUT}", after) == "True\n2\n"
