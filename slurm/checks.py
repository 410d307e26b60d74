"""Checks before submission for what would make a job fail or never start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from emma.base.errors import RecipeError, UserError
from emma.recipes.compose import nearest
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import seconds
from emma.slurm import query
from emma.slurm.stages import Stage, stage_job
from emma.tools.runs.run_folder import RunFolder

__all__ = [
    "Problems",
    "check_account",
    "check_base",
    "check_inputs",
    "check_mounts",
    "check_partitions",
    "check_paths",
]


class Problems:
    """Context for each check: a dry run collects problems, so that the scripts can still be shown; otherwise
    the first problem is raised."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run, self.found = dry_run, list[UserError]()

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.dry_run and isinstance(error, UserError):
            self.found.append(error)
            return True
        return False


def check_inputs(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """The first stage's inputs must exist; those that the chain itself writes can't be checked yet.

    Raises:
        UserError: an input is missing.
    """
    if (problem := stages[0].missing(recipe)) is not None:
        raise UserError(problem)


def check_base(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """The base model must exist and have the recipe's shape if training is to start from it.

    Raises:
        UserError: it is missing, or it is another model.
    """
    from emma.checkpoints_conversion.checkpoint import check_start

    if all(stage.name != "train" for stage in stages) or RunFolder(recipe.run_folder).latest_step():
        return
    checkpoint = recipe.start.checkpoint
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise UserError(
            f"start.checkpoint: {checkpoint} does not exist. Fix: import the base model with `emma convert "
            f"hf-to-megatron <folder of the Hugging Face model> {checkpoint}`, or name another folder"
        )
    check_start(recipe)


def check_paths(recipe: Recipe) -> None:
    """The environment and the output folders must be usable.

    Raises:
        UserError: a folder is not writable, or the environment of the jobs does not exist.
    """
    slurm = recipe.cluster.slurm
    if (
        slurm.template == "venv"
        and slurm.venv is not None
        and not (Path(slurm.venv) / "bin" / "activate").is_file()
    ):
        raise RecipeError(
            "cluster.slurm.venv",
            f"{slurm.venv} has no bin/activate",
            "name a virtual environment that has this project installed",
        )
    if (
        slurm.container is not None
        and slurm.container.startswith(("/", "."))
        and not Path(slurm.container).exists()
    ):
        raise RecipeError("cluster.slurm.container", f"{slurm.container} does not exist", "correct the path")
    for mount in slurm.mounts:
        if not Path(mount.partition(":")[0]).exists():
            raise RecipeError(
                "cluster.slurm.mounts", f"{mount.partition(':')[0]} does not exist", "correct the path"
            )
    if slurm.container is not None:
        check_mounts(recipe)
    for key, path in (("runs", recipe.paths.runs), ("store", recipe.paths.store), ("mix", recipe.paths.mix)):
        folder = Path(path).absolute()
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RecipeError(
                f"paths.{key}", f"{folder} is not writable", "choose a folder that you can write"
            )


def check_mounts(recipe: Recipe) -> None:
    """The container must see every folder that the jobs use, where the recipe says it is, and write where they write.

    Raises:
        RecipeError: no mount holds a folder, or it is elsewhere inside, or read-only.
    """
    mounts = {Path.cwd(): True}
    for mount in recipe.cluster.slurm.mounts:
        outside, inside, mode = (*mount.split(":"), "", "")[:3]
        if Path(outside).absolute() == Path(inside or outside).absolute():
            mounts[Path(outside).absolute()] = mode != "ro"
    for key, path, written in _used(recipe):
        # A link is followed inside too, so both ends must be there.
        for place in dict.fromkeys((Path(path).absolute(), Path(path).resolve())):
            around = max(
                (mount for mount in mounts if place.is_relative_to(mount)),
                key=lambda mount: len(mount.parts),
                default=None,
            )
            if around is None:
                raise RecipeError(
                    "cluster.slurm.mounts",
                    f"the container does not see {place} ({key}) at the same place as outside",
                    f"add {place}, or a folder above it",
                )
            if written and not mounts[around]:
                raise RecipeError(
                    "cluster.slurm.mounts",
                    f"{around} is read-only (`:ro`), but jobs write {place} ({key})",
                    "leave out `:ro`",
                )


def _used(recipe: Recipe) -> Iterator[tuple[str, str, bool]]:
    """Key and path of what jobs use, and whether they write it."""
    yield "paths.runs", recipe.paths.runs, True
    yield "paths.store", recipe.paths.store, True
    yield "paths.mix", recipe.paths.mix, True
    yield "paths.corpus", recipe.paths.corpus, False
    yield "model.tokenizer.path", recipe.model.tokenizer.path, False
    for key, path in (
        ("start.checkpoint", recipe.start.checkpoint),
        ("start.reference", recipe.start.reference),
    ):
        if path is not None:
            yield key, path, False


def check_partitions(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Partitions must exist, be up, have enough nodes, and allow the time limit.

    Raises:
        RecipeError: one does not.
    """
    known = query.partitions()
    for key, name, nodes, limit in _requests(recipe, stages):
        if name is None:
            if not any(partition.default for partition in known.values()):
                raise RecipeError(
                    f"{key}.partition",
                    "is not set, and this cluster has no default partition",
                    f"set it to one of {', '.join(sorted(known))}",
                )
            partition = next(partition for partition in known.values() if partition.default)
        elif name not in known:
            raise RecipeError(
                f"{key}.partition", f"there is no partition `{name}`", nearest(name, list(known))
            )
        else:
            partition = known[name]
        if not partition.up:
            raise RecipeError(f"{key}.partition", f"`{partition.name}` is down", "choose another, or wait")
        if partition.max_seconds is not None and seconds(limit) > partition.max_seconds:
            hours = partition.max_seconds / 3600
            raise RecipeError(
                f"{key}.time_limit",
                f"{limit} is above the {hours:g} h of partition `{partition.name}`",
                "lower it",
            )
        if nodes > partition.nodes:
            raise RecipeError(
                "cluster.nodes",
                f"{nodes}, but partition `{partition.name}` has {partition.nodes}",
                "use fewer nodes or another partition",
            )


def _requests(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[tuple[str, str | None, int, str]]:
    """Key, partition, nodes, and time limit of each stage's job."""
    slurm = recipe.cluster.slurm
    for stage in stages:
        if stage.name == "train":
            yield "cluster.slurm", slurm.partition, recipe.cluster.nodes, slurm.time_limit
        else:
            job = stage_job(recipe, stage.name)
            yield f"cluster.slurm.stages.{stage.name}", job.partition or slurm.partition, 1, job.time_limit


def check_account(recipe: Recipe) -> None:
    """The settings that the cluster requires must be set, and the account must be the user's.

    Raises:
        RecipeError: one is missing, or the accounting database does not list the account.
    """
    slurm = recipe.cluster.slurm
    for name in slurm.requires:
        if getattr(slurm, name) is None:
            raise RecipeError(
                f"cluster.slurm.{name}",
                f"is not set, and {recipe.cluster.name} requires it",
                f"add cluster.slurm.{name}=... on the command line, or to the cluster file",
            )
    if not query.needs_account():
        return
    allowed = query.accounts()
    if slurm.account is None and not allowed:
        raise RecipeError(
            "cluster.slurm.account", "you have no account on this cluster", "ask its administrators"
        )
    if slurm.account is not None and slurm.account not in allowed:
        raise RecipeError(
            "cluster.slurm.account",
            f"`{slurm.account}` is not one of your accounts",
            nearest(slurm.account, allowed) if allowed else "ask the cluster's administrators",
        )
