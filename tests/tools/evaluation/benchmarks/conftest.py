from __future__ import annotations

from pathlib import Path

import pytest

from emma.tools.evaluation.benchmarks.stores import Mirror
from tests.tools.evaluation.benchmarks.sample_mirror import write_mirror, write_sentencepiece
from tests.tools.evaluation.tiny_model import write_model
from tests.tools.hub.uploading import address

__all__ = ["address"]


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="session")
def store(mirror: Path) -> Mirror:
    return Mirror(mirror)


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("spm") / "toy.model")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for prompts."""
    return write_model(tmp_path_factory.mktemp("reader") / "reader", seed=1, positions=1024)
