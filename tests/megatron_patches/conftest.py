"""One reference run, whose checkpoint and losses the tests of several patches share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.megatron_patches.small_run import at_step, train
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Reference:
    """A run on one rank, in fp32, 8 steps, saved at step 4; `losses` are (step, loss)."""

    folder: Path
    losses: list[tuple[int, float]]

    @property
    def second_half(self) -> list[tuple[int, float]]:
        return self.losses[4:]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    (losses,) = run_ranks(train, 1, "--save", str(folder), "--save-interval", "4")
    at_step(folder, 4)
    yield Reference(folder, losses)
    shutil.rmtree(folder, ignore_errors=True)
