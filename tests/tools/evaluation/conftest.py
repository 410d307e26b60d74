from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tools.evaluation.tiny_model import write_corpus, write_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """With matrices this small, waiting for other threads costs more than they save."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "trained", seed=1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "base", seed=0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))
