from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from emma.recipes.schema import Recipe
from tests.checkpoints_conversion.release.released_run import write_released_run
from tests.tools.hub.uploading import address, hub

__all__ = ["address", "hub"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """With matrices this small, waiting for other threads costs more than they save."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that no test changes."""
    return write_released_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def released(made: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release, which no test changes."""
    from emma.checkpoints_conversion.release.build import plan_release, write_release

    folder = tmp_path_factory.mktemp("released") / "release"
    write_release(plan_release(str(made.run_folder)), folder, shard_bytes=60_000)
    return folder


@pytest.fixture
def run(made: Recipe, tmp_path: Path) -> Path:
    """A copy of the run for tests to corrupt."""
    return Path(shutil.copytree(made.run_folder, tmp_path / "run"))


@pytest.fixture
def release(released: Path, tmp_path: Path) -> Path:
    """A copy of the release for tests to corrupt."""
    return Path(shutil.copytree(released, tmp_path / "release"))
