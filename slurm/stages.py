"""The stages of a chain: what each reads and writes, what it runs, and whether it is done."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import StageJob, StageName
from emma.tools.runs.run_folder import RunFolder

__all__ = ["STAGES", "Stage", "emma_program", "job_name", "place", "stage_job"]

TASK = "$SLURM_ARRAY_TASK_ID"
"""Placeholder for the array task in a command; the job's shell expands it."""


@dataclass(frozen=True)
class Stage:
    """One stage of a chain.

    Attributes:
        name: the name that `--from` takes.
        place: the folder that it writes; runs that share the folder share the stage's job.
        done: whether the stage has nothing left to do for a recipe.
        missing: the first input that is not on disk, with the fix, or None.
        mark: file that marks the stage as done, for commands that refuse to run twice.
        content: which parts of `place` a recipe needs; all of it if empty.
        commands: `emma` command lines (without `emma`) for a run folder; `TASK` stands for the array task.
        after: command lines to run in a separate job once all array tasks are done.
    """

    name: StageName
    place: Callable[[Recipe], Path]
    done: Callable[[Recipe], bool]
    missing: Callable[[Recipe], str | None]
    commands: Callable[[Recipe, StageJob], list[list[str]]]
    after: Callable[[Recipe, StageJob], list[list[str]]] | None = None
    mark: Callable[[Recipe], Path] | None = None
    content: Callable[[Recipe], list[str]] = lambda recipe: []


def stage_job(recipe: Recipe, stage: StageName) -> StageJob:
    """Resources of a stage's job."""
    job = recipe.cluster.slurm.stages.get(stage, StageJob())
    if job.gpus is not None:
        return job
    return job.model_copy(update={"gpus": int(stage == "evaluate" and recipe.cluster.device != "cpu")})


def place(recipe: Recipe, stage: StageName) -> Path:
    """Folder that a stage writes, absolute."""
    return STAGES[stage].place(recipe).absolute()


def job_name(folder: Path, stage: str) -> str:
    """Name of a stage's jobs: one name per output folder, so that a singleton dependency runs only one of
    them at a time. `squeue --name` takes names apart at commas, so none stays in it."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', folder.name)}-{stage}-{digest}"


def _export(recipe: Recipe) -> Path:
    return recipe.run_folder / "hf" / f"step-{recipe.schedule.steps}"


def _release(recipe: Recipe) -> Path:
    return recipe.run_folder / "release"


def _packed(recipe: Recipe) -> bool:
    store = Path(recipe.paths.store)
    return all((store / name / MANIFEST_NAME).is_file() for name in recipe.data.pack.components)


def _pack_missing(recipe: Recipe) -> str | None:
    from emma.tools.pack.plan import PackSettings

    try:
        settings = PackSettings.of_recipe(recipe)
        for name in recipe.data.pack.components:
            settings.inputs(name)
    except UserError as error:
        return str(error)
    tokenizer = Path(recipe.model.tokenizer.path)
    return (
        None
        if tokenizer.exists()
        else f"model.tokenizer.path: {tokenizer} does not exist. Fix: correct the path"
    )


def _folder(path: Path, what: str, fix: str) -> str | None:
    return None if path.is_dir() else f"{path}: {what} does not exist. Fix: {fix}"


def _store_missing(recipe: Recipe) -> str | None:
    """A store that a submission has only made for its note is none."""
    store = Path(recipe.paths.store)
    empty = store.is_dir() and all(path.name.startswith(".") for path in store.iterdir())
    fix = "submit --from pack, or `emma pack run` first"
    return (
        f"{store}: the token store is empty. Fix: {fix}" if empty else _folder(store, "the token store", fix)
    )


def _pack_commands(recipe: Recipe, job: StageJob) -> list[list[str]]:
    run = str(recipe.run_folder)
    share = [f"--shard={TASK}/{job.tasks}"] if job.tasks > 1 else []
    return [["pack", "run", run, *share, *job.arguments]]


def _convert_commands(recipe: Recipe, job: StageJob) -> list[list[str]]:
    step = f"--step={recipe.schedule.steps}"
    return [["convert", "megatron-to-hf", str(recipe.run_folder), str(_export(recipe)), step, *job.arguments]]


def _evaluate_commands(recipe: Recipe, job: StageJob) -> list[list[str]]:
    share = [f"--shard={TASK}/{job.tasks}"] if job.tasks > 1 else []
    return [["evaluate", "run", str(recipe.run_folder), *share, *job.arguments]]


def _join_evaluation(recipe: Recipe, job: StageJob) -> list[list[str]]:
    """The same command without a share: it finds everything finished and writes the tables."""
    return [["evaluate", "run", str(recipe.run_folder), *job.arguments]] if job.tasks > 1 else []


def _release_commands(recipe: Recipe, job: StageJob) -> list[list[str]]:
    step, release = f"--step={recipe.schedule.steps}", str(_release(recipe))
    return [
        ["release", "model", str(recipe.run_folder), release, step, *job.arguments],
        ["release", "verify", release],
    ]


_STAGES = (
    Stage(
        name="pack",
        place=lambda recipe: Path(recipe.paths.store),
        done=_packed,
        missing=_pack_missing,
        commands=_pack_commands,
        after=lambda recipe, job: (
            [["pack", "run", str(recipe.run_folder), "--finish"]] if job.tasks > 1 else []
        ),
        content=lambda recipe: sorted(recipe.data.pack.components),
    ),
    Stage(
        name="mix",
        place=lambda recipe: recipe.mix_folder,
        done=lambda recipe: (recipe.mix_folder / MANIFEST_NAME).is_file(),
        missing=_store_missing,
        commands=lambda recipe, job: [["mix", "build", str(recipe.run_folder), *job.arguments]],
    ),
    Stage(
        name="train",
        place=lambda recipe: recipe.run_folder,
        done=lambda recipe: RunFolder(recipe.run_folder).finished(recipe),
        missing=lambda recipe: _folder(recipe.mix_folder, "the mix", "submit --from mix or --from pack"),
        commands=lambda recipe, job: [],
    ),
    Stage(
        name="convert",
        place=lambda recipe: recipe.run_folder,
        done=lambda recipe: (_export(recipe) / MANIFEST_NAME).is_file(),
        missing=lambda recipe: _folder(
            RunFolder(recipe.run_folder).checkpoints / f"iter_{recipe.schedule.steps:07d}",
            "the last checkpoint",
            "submit --from train",
        ),
        commands=_convert_commands,
        mark=lambda recipe: _export(recipe) / MANIFEST_NAME,
    ),
    Stage(
        name="evaluate",
        place=lambda recipe: recipe.run_folder,
        done=lambda recipe: (recipe.run_folder / "evaluation" / "results.parquet").is_file(),
        missing=lambda recipe: _folder(_export(recipe), "the exported model", "submit --from convert"),
        commands=_evaluate_commands,
        after=_join_evaluation,
    ),
    Stage(
        name="release",
        place=lambda recipe: recipe.run_folder,
        done=lambda recipe: (_release(recipe) / MANIFEST_NAME).is_file(),
        missing=lambda recipe: _folder(_export(recipe), "the exported model", "submit --from convert"),
        commands=_release_commands,
        mark=lambda recipe: _release(recipe) / MANIFEST_NAME,
    ),
)

STAGES: dict[StageName, Stage] = {stage.name: stage for stage in _STAGES}
"""The stages in the order of the chain."""


def shell_line(arguments: list[str]) -> str:
    """An `emma` command line for a script; the shell still expands the array task's variable."""
    words = []
    for argument in arguments:
        if TASK in argument:
            parts = [re.sub(r'(["$`\\])', r"\\\1", part) for part in argument.split(TASK)]
            words.append(f'"{TASK.join(parts)}"')
        else:
            words.append(shlex.quote(argument))
    return " ".join(["emma", *words])


def emma_program() -> str:
    """The `emma` that was installed with this interpreter, to start a stage in a process of its own.

    Raises:
        UserError: there is none.
    """
    program = Path(sys.executable).with_name("emma")
    if not program.is_file():
        raise UserError(f"{program}: does not exist. Fix: install this project into {sys.prefix}")
    return str(program)


def stages_between(first: StageName, last: StageName) -> list[Stage]:
    """Stages of a chain from `first` to `last`, inclusive."""
    names = list(typing.get_args(StageName))
    return [STAGES[name] for name in names[names.index(first) : names.index(last) + 1]]
