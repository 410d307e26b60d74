"""Real runs of the trainer in forked ranks (see tests/ranks.py), each from a run folder as the launcher prepares it."""

from __future__ import annotations

from pathlib import Path

from emma.recipes.schema import Recipe
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import rank_environment
from tests.ranks import Job, run_ranks, start_ranks

__all__ = ["losses", "rank", "start_run", "train_run", "validation"]


def rank(folder: str) -> None:
    """What torchrun starts, without its process."""
    from emma.tools.training.worker import train

    train(Path(folder))


def start_run(recipe: Recipe) -> Job:
    """Prepares the run folder and starts its ranks."""
    run = RunFolder(recipe.run_folder)
    env = rank_environment(recipe) | run.prepare(recipe, take_over=True).environment
    return start_ranks(rank, recipe.cluster.world_size, str(run.path), env=env)


def train_run(recipe: Recipe, timeout: float = 240.0) -> RunFolder:
    """Trains to the end of the schedule, or on from where the run stands."""
    run = RunFolder(recipe.run_folder)
    env = rank_environment(recipe) | run.prepare(recipe, take_over=True).environment
    run_ranks(rank, recipe.cluster.world_size, str(run.path), env=env, timeout=timeout)
    return run


def losses(run: RunFolder) -> dict[int, float]:
    """Loss of each step."""
    return {row["step"]: row["loss"] for row in read_metrics(run.metrics_file)[0]}


def validation(run: RunFolder) -> dict[int, dict[str, float]]:
    """Losses by group of each validation."""
    return {row["step"]: row["validation"] for row in read_metrics(run.metrics_file)[1]}
