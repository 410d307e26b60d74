"""Where vLLM is not installed, asking for it says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import ModelSettings, load_backend


def test_a_backend_that_is_missing_is_named(reader: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(UserError, match="vllm is not installed"):
        load_backend(reader, ModelSettings(backend="vllm"), 64)
