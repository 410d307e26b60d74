"""A small run with its inputs on disk, and a machine without Slurm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from tests.small_recipe import write_small_run

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides all Slurm commands, whatever this machine has."""
    real = shutil.which
    names = {"sbatch", "squeue", "scontrol", "sacct"}
    monkeypatch.setattr(shutil, "which", lambda name, **rest: None if name in names else real(name, **rest))


@pytest.fixture
def make_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRecipe:
    """Recipes of a small run in its own working folder; `ready` creates the folders that its stages read."""
    monkeypatch.chdir(tmp_path)
    file = write_small_run(tmp_path)

    def make(*overrides: str, ready: bool = True) -> Recipe:
        recipe = load_recipe(str(file), overrides)
        if ready:
            text = Path("corpus/split/monolingual/eng_Latn/part-00000.parquet")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.touch()
            for folder in ("store/monolingual", "mix/small", "tokenizer"):
                Path(folder).mkdir(parents=True, exist_ok=True)
        return recipe

    return make
