"""Job scripts from templates."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from emma.base.errors import RecipeError, UserError
from emma.base.sharing import umask_for
from emma.recipes.devices import device
from emma.recipes.limits import control_character
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import Slurm, StageName, seconds
from emma.recipes.schema.sweep import Sweep
from emma.slurm.history import FOLDER
from emma.slurm.stages import STAGES, job_name, place, shell_line, stage_job
from emma.tools.training.launch import rank_environment

__all__ = ["Script", "render_results", "render_stage", "render_train", "render_trials"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Script:
    """A job script and what its submission needs.

    Attributes:
        stage: stage that it runs; `-finish` is appended for the part that follows an array.
        name: job name; jobs with the same name never run at the same time.
        text: the script.
        gpu_hours: upper limit of what the job can use.
    """

    stage: str
    name: str
    text: str
    gpu_hours: float


@dataclass(frozen=True)
class _Job:
    """What the templates see under `job`."""

    title: str
    body: str
    options: list[str]
    run: str
    environment: dict[str, str]
    commands: list[str] = field(default_factory=list)
    rank_options: list[str] = field(default_factory=list)
    pruning: bool = False
    evaluates: bool = False
    mark: str | None = None


def render_stage(recipe: Recipe, stage: StageName, *, finish: bool = False) -> Script:
    """Script of a stage other than training; `finish` selects the part that follows an array."""
    slurm, job = recipe.cluster.slurm, stage_job(recipe, stage)
    run, name = recipe.run_folder.absolute(), job_name(place(recipe, stage), stage)
    array = job.tasks > 1 and not finish
    definition = STAGES[stage]
    commands = (
        definition.after(recipe, job) if finish and definition.after else definition.commands(recipe, job)
    )
    name = f"{name}-finish" if finish else name
    options = [
        *_common_options(
            slurm, name, run, f"{stage}-finish" if finish else stage, "%A_%a" if array else "%j"
        ),
        *_option("--partition", job.partition or slurm.partition),
        f"--time={job.time_limit}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={job.cpus}",
        *_option("--mem", job.memory),
        *_gpus(slurm, job.gpus),
        *map(sbatch_word, slurm.sbatch),
    ]
    if array:
        limit = f"%{job.concurrent}" if job.concurrent else ""
        options.append(f"--array=0-{job.tasks - 1}{limit}")
    described = _Job(
        title=f"{stage} of {recipe.name}" + (f", array of {job.tasks} tasks" if array else ""),
        body="stage.sh.j2",
        options=options,
        run=str(run),
        environment={**recipe.cluster.environment, **recipe.environment},
        commands=[shell_line(command) for command in commands],
        mark=str(definition.mark(recipe)) if definition.mark else None,
    )
    hours = (job.gpus or 0) * job.tasks * _hours(job.time_limit)
    return Script(f"{stage}-finish" if finish else stage, name, _render(recipe, described), hours)


def render_train(recipe: Recipe) -> Script:
    """Script of one training link; all links of a run share it."""
    cluster, slurm = recipe.cluster, recipe.cluster.slurm
    run, name = recipe.run_folder.absolute(), job_name(place(recipe, "train"), "train")
    options = [
        *_common_options(slurm, name, run, "train", "%j"),
        *_option("--partition", slurm.partition),
        f"--time={slurm.time_limit}",
        *train_layout(recipe),
        *map(sbatch_word, slurm.sbatch),
    ]
    described = _Job(
        title=f"training of {recipe.name}: one link of a chain; continues from the run folder",
        body="train.sh.j2",
        options=options,
        run=str(run),
        environment=rank_environment(recipe),
        rank_options=rank_options(recipe),
    )
    hours = (cluster.world_size if cluster.device != "cpu" else 0) * _hours(slurm.time_limit)
    return Script("train", name, _render(recipe, described), hours)


def render_trials(recipe: Recipe, sweep: Sweep, folder: Path, count: int) -> Script:
    """Script of the array of a sweep's trials; `recipe` is that of any trial, since all have the same layout.
    The array itself (which trials are left, how many run at once) is an option of its submission."""
    cluster, slurm, name = recipe.cluster, recipe.cluster.slurm, job_name(folder, "trials")
    options = [
        *_common_options(slurm, name, folder, "trials", "%a"),
        *_option("--partition", slurm.partition),
        f"--time={slurm.time_limit}",
        *train_layout(recipe),
        *map(sbatch_word, slurm.sbatch),
    ]
    described = _Job(
        title=f"trials of sweep {sweep.name}, one per array task",
        body="trial.sh.j2",
        options=options,
        run=str(folder),
        environment=rank_environment(recipe),
        rank_options=rank_options(recipe),
        pruning=bool(sweep.pruning),
        evaluates=sweep.evaluates,
    )
    hours = (cluster.world_size if cluster.device != "cpu" else 0) * _hours(slurm.time_limit)
    return Script("trials", name, _render(recipe, described), hours * count)


def render_results(recipe: Recipe, sweep: Sweep, folder: Path) -> Script:
    """Script of the job that collects a sweep's results once its trials have ended."""
    slurm, name = recipe.cluster.slurm, job_name(folder, "results")
    options = [
        *_common_options(slurm, name, folder, "results", "%j"),
        *_option("--partition", slurm.partition),
        *("--time=00:15:00", "--nodes=1", "--ntasks=1", "--cpus-per-task=1"),
        *map(sbatch_word, slurm.sbatch),
    ]
    commands = [shell_line(["sweep", str(folder), "--results"])]
    described = _Job(f"results of sweep {sweep.name}", "stage.sh.j2", options, str(folder), {}, commands)
    return Script("results", name, _render(recipe, described), 0.0)


def train_layout(recipe: Recipe) -> list[str]:
    """Options of a training job: nodes, ranks, devices, and the signal ahead of the time limit."""
    cluster, slurm = recipe.cluster, recipe.cluster.slurm
    return [
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={cluster.gpus_per_node}",
        *_gpus(slurm, None if cluster.device == "cpu" else cluster.gpus_per_node),
        *([f"--cpus-per-task={slurm.cpus_per_rank}"] if slurm.cpus_per_rank else []),
        *(["--exclusive"] if slurm.exclusive else []),
        *_option("--mem", slurm.memory),
        # To the ranks (no `B:`), as scancel and preemption do: they save and exit with 0.
        f"--signal=TERM@{slurm.signal_seconds}",
        "--requeue",
    ]


def rank_options(recipe: Recipe) -> list[str]:
    """Options of the `srun` that starts the ranks."""
    cluster, slurm = recipe.cluster, recipe.cluster.slurm
    # Since Slurm 22.05 srun does not inherit the job's cores per task.
    cores = [f"--cpus-per-task={slurm.cpus_per_rank}"] if slurm.cpus_per_rank else []
    layout = [f"--nodes={cluster.nodes}", f"--ntasks-per-node={cluster.gpus_per_node}"]
    return [*layout, *cores, "--kill-on-bad-exit=1", "--open-mode=append", *slurm.srun]


def _common_options(slurm: Slurm, name: str, run: Path, stage: str, job: str) -> list[str]:
    if "%" in str(run) or "\\" in str(run):
        raise RecipeError(
            "paths.runs",
            f"{run} holds a `%` or a backslash, which Slurm does not leave alone in the name of a log",
            "choose another folder",
        )
    return [
        f"--job-name={name}",
        *_option("--comment", f"emma {stage} {run}"),
        *_option("--output", f"{run}/logs/slurm/{stage}-{job}.log"),
        "--open-mode=append",
        *_option("--account", slurm.account),
        *_option("--qos", slurm.qos),
        *_option("--reservation", slurm.reservation),
        *_option("--constraint", slurm.constraint),
    ]


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{name}={sbatch_word(value)}"]


def _gpus(slurm: Slurm, count: int | None) -> list[str]:
    return [sbatch_word(slurm.gpu_option.replace("{gpus}", str(count)))] if count else []


def sbatch_word(value: str) -> str:
    """A value in a `#SBATCH` line. sbatch reads these lines itself: a backslash keeps the next character between
    quotes too, where `#` would begin a comment; only quotes keep a space."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]*", value):
        return value
    return '"' + re.sub(r"""(["'#\\])""", r"\\\1", value) + '"'


def _hours(time_limit: str) -> float:
    return seconds(time_limit) / 3600


def _render(recipe: Recipe, job: _Job, **more: Any) -> str:
    slurm, cluster = recipe.cluster.slurm, recipe.cluster
    own = Path(slurm.template)
    folders = [str(own.parent), str(TEMPLATES)] if own.suffix == ".j2" else [str(TEMPLATES)]
    name = own.name if own.suffix == ".j2" else f"{slurm.template}.sh.j2"
    for what, folder in (("the working folder", str(Path.cwd())), ("this environment", sys.prefix)):
        if found := control_character(folder):
            raise UserError(
                f"{what}, {folder!r}, has a line break or another control character ({found}). Fix: rename it"
            )
    interface = slurm.network_interface
    network = {} if interface is None else {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    work = Path.cwd()
    try:
        return (
            _environment(*folders)
            .get_template(name)
            .render(
                job=job,
                recipe=recipe,
                slurm=slurm,
                cluster=cluster,
                platform=device(cluster.device).platform,
                work=str(work),
                scripts=f"{job.run}/{FOLDER}",
                venv=slurm.venv or sys.prefix,
                mounts=[str(work), *slurm.mounts],
                umask=f"{umask_for(Path(job.run)):04o}",
                exports={**network, **job.environment},
                **more,
            )
        )
    except jinja2.TemplateNotFound as error:
        raise UserError(
            f"cluster.slurm.template: {error.name} is not in {os.pathsep.join(folders)}. Fix: correct the path"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{error.filename}:{error.lineno}: {error.message}. Fix: correct the template"
        ) from None
    except jinja2.UndefinedError as error:
        raise UserError(f"{slurm.template}: {error.message}. Fix: correct the template") from None


@cache
def _environment(*folders: str) -> jinja2.Environment:
    """Compiles each template once; a changed file is read again."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment
