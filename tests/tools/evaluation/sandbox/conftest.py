from __future__ import annotations

import pytest

from emma.tools.evaluation.sandbox.toolchains import Executor
from tests.tools.evaluation.sandbox.isolation import needs_isolation


@pytest.fixture(scope="session")
def executor() -> Executor:
    """Proven, without further files."""
    needs_isolation()
    return Executor(lambda name: None)
