"""Fixtures that tests of several rooms need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.two_nodes import TwoNodes, running_nodes


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """A real Slurm with two nodes on this machine; tests that use it carry the mark `slurm`."""
    with running_nodes(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture(scope="session", autouse=True)
def certificates(request: pytest.FixtureRequest) -> None:
    """Tokenizers' certificates are kept from one test session to the next: each takes seconds to make."""
    os.environ.setdefault("EMMA_CACHE", str(request.config.cache.mkdir("emma")))
