"""Megatron's side for a run that has not been trained: its first steps, in a run folder of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.prove.begin import Begin
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import train_here

__all__ = ["train_trial", "trial_folder", "truncated_base"]


@contextmanager
def trial_folder(recipe: Recipe) -> Iterator[Path]:
    """Lends a new folder `<name>.prove-…` beside the run's; it is removed at the end, unless by an error, whose
    reason its logs tell."""
    runs = recipe.run_folder.parent
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{recipe.name}.prove-", dir=runs))
    yield folder
    shutil.rmtree(folder)


def truncated_base(recipe: Recipe, begin: Begin, folder: Path) -> Path:
    """A Megatron checkpoint of the beginning's first layers (as many as the recipe's model has), its embedding,
    final norm and output layer."""
    from emma.checkpoints_conversion.hf_to_megatron import convert

    begin.model(recipe).save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "base")
    return folder / "base"


def train_trial(run: str, overrides: Sequence[str], folder: Path, last: int, base: Path | None) -> RunFolder:
    """Trains the first steps of a run in `folder`, with the schedule of the whole run; saves no checkpoint but,
    for a run from scratch, one of step 0.

    Args:
        run: the RUN.
        overrides: those it was given with.
        folder: an empty folder beside the run's own.
        last: the step to end at.
        base: checkpoint to start from instead of the recipe's.

    Raises:
        CheckFailedError: a rank failed; the message quotes the end of its log.
    """
    given = [
        f"name={folder.name}",
        # Only the steps' losses are wanted, and no checkpoint.
        "validation.groups=[]",
        "validation.at_start=false",
        "checkpoint.asynchronous=false",
        "logging.interval=1",
        "logging.tensorboard=false",
        "logging.wandb_project=null",
        "logging.wandb_offline=false",
        "safety.rewinds=0",
        "start.reference=null",
    ]
    if base is not None:
        given += [f"start.checkpoint={orjson.dumps(str(base)).decode()}", "start.step=null"]
    recipe = load_recipe(run, [*overrides, *given])
    trial = RunFolder(recipe.run_folder)
    if trial.path.resolve() != folder.resolve():
        raise UserError(f"{trial.path} is not {folder}; give paths.runs in the recipe, not in a proof")
    train_here(recipe, trial, trial.prepare(recipe, trial=last))
    return trial
