"""Submission of a sweep: its remaining trials as a job array, and a job that collects the results."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.recipes.load import load_sweep
from emma.recipes.schema import Recipe
from emma.slurm import query
from emma.slurm.checks import Problems, check_account, check_base, check_inputs, check_partitions, check_paths
from emma.slurm.history import History
from emma.slurm.render import Script, render_results, render_trials
from emma.slurm.sbatch import refuse_if_slurm_would, sbatch
from emma.slurm.space import check_room
from emma.slurm.stages import job_name, stages_between
from emma.slurm.submit import Submitted, write_script
from emma.slurm.sweep import SweepFolder, Trial, base_recipe, design, with_overrides
from emma.tools.plan.plan import make_plan
from emma.tools.training.launch import rank_environment
from emma.tools.training.proven import refuse_unproven

__all__ = ["SweepPlan", "open_sweep", "plan_sweep", "recipes_of", "submit_sweep"]


@dataclass(frozen=True)
class SweepPlan:
    """What a submission would do.

    Attributes:
        numbers: trials to submit.
        queued: trials already in the queue.
        concurrent: trials that may run at the same time.
        limit: GPU-hours allowed without confirmation.
        expected: estimated GPU-hours of the trials; None without an estimate.
        problems: why a submission would be refused (dry runs only; otherwise the first is raised).
    """

    folder: SweepFolder
    trials: list[Trial]
    numbers: list[int]
    queued: list[int]
    concurrent: int
    script: Script
    results: Script
    limit: float
    expected: float | None = None
    problems: tuple[UserError, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """Upper limit of what the trials can use."""
        return self.script.gpu_hours

    @property
    def array(self) -> str:
        """Value of `sbatch --array`."""
        return f"{','.join(map(str, self.numbers))}%{self.concurrent}"

    def summary(self) -> str:
        """A short summary."""
        done = sum(trial.done for trial in self.trials)
        failed = [
            trial.number
            for trial in self.trials
            if trial.state == "failed" and trial.number not in self.numbers
        ]
        lines = [
            f"sweep     {self.folder.path}",
            f"trials    {len(self.trials)}: {done} with a result, {len(self.queued)} in the queue, "
            f"{len(self.numbers)} to submit, {self.concurrent} at a time",
        ]
        if failed:
            lines.append(f"failed    {', '.join(map(str, failed))} (--retry-failed submits them again)")
        should = "" if self.expected is None else f"; the trials should take {self.expected:,.0f}"
        lines.append(f"GPU-hours at most {self.gpu_hours:,.0f}{should}")
        return "\n".join(lines)

    def text(self) -> str:
        """The dry run's output: trials with their parameters, and the script."""
        lines = [self.summary()]
        for trial in self.trials:
            chosen = "chosen when it starts"
            if trial.parameters is not None:
                chosen = " ".join(f"{key}={value}" for key, value in trial.parameters.items())
            lines.append(f"  {trial.number:>4}  {trial.state:<9} {chosen}")
        return "\n".join([*lines, "", f"# sbatch --array={self.array}", self.script.text])

    def to_dict(self) -> dict[str, Any]:
        """For the dry run's JSON."""
        return {
            "folder": str(self.folder.path),
            "trials": [
                {"number": t.number, "state": t.state, "parameters": t.parameters} for t in self.trials
            ],
            "array": self.array,
            "gpu_hours_at_most": self.gpu_hours,
            "gpu_hours_expected": self.expected,
            "problems": [str(problem) for problem in self.problems],
            "script": self.script.text,
        }


def open_sweep(sweep: str, overrides: Sequence[str] = ()) -> SweepFolder:
    """A sweep by name, file, or folder.

    Raises:
        UserError: it does not exist.
    """
    if (Path(sweep) / "sweep.yaml").is_file():
        folder = SweepFolder.read(Path(sweep).absolute())
        return SweepFolder(folder.path, with_overrides(folder.sweep, overrides))
    return SweepFolder.of(with_overrides(load_sweep(sweep), overrides))


def plan_sweep(
    folder: SweepFolder,
    *,
    retry_failed: bool = False,
    concurrent: int | None = None,
    dry_run: bool = False,
) -> SweepPlan:
    """Decides which trials are left.

    Raises:
        UserError: a trial's recipe cannot work, its inputs are missing, or Slurm would refuse the jobs. A dry
            run collects what is missing or refused in the plan's `problems`.
    """
    problems = Problems(dry_run)
    trials = folder.trials()
    queued: list[int] = []
    with problems:
        queued = _queued(folder)
    wanted = {"waiting", "begun", *(["failed"] if retry_failed else [])}
    numbers = [trial.number for trial in trials if trial.state in wanted and trial.number not in queued]
    recipes = recipes_of(folder)
    hours: list[float] = []
    with problems:
        plans = [make_plan(each) for each in recipes]
        hours = [plan.time.gpu_hours for plan in plans if plan.time is not None]
    recipe = recipes[0]
    with problems:
        refuse_unproven(recipe)
    with problems:
        check_inputs(recipe, stages_between("mix", "train"))
    with problems:
        check_base(recipe, stages_between("train", "train"))
    with problems:
        check_paths(recipe)
    with problems:
        check_room(recipe, stages_between("train", "train"), runs=len(numbers))
    if shutil.which("sbatch") is not None and not any(
        isinstance(problem, query.SlurmError) for problem in problems.found
    ):
        with problems:
            check_account(recipe)
        with problems:
            check_partitions(recipe, stages_between("train", "train"))
    return SweepPlan(
        folder=folder,
        trials=trials,
        numbers=numbers,
        queued=queued,
        concurrent=concurrent or folder.sweep.concurrent,
        script=render_trials(recipe, folder.sweep, folder.path, len(numbers)),
        results=render_results(recipe, folder.sweep, folder.path),
        limit=recipe.cluster.slurm.confirm_gpu_hours,
        expected=sum(hours) / len(hours) * len(numbers) if hours else None,
        problems=tuple(problems.found),
    )


def _queued(folder: SweepFolder) -> list[int]:
    if shutil.which("squeue") is None:
        return []
    jobs = query.jobs([job_name(folder.path, "trials")])
    return sorted({number for job in jobs if job.task is not None for number in query.array_tasks(job.task)})


def recipes_of(folder: SweepFolder) -> list[Recipe]:
    """Recipes of the known trials; before an adaptive search has chosen any, that of the base run.

    Raises:
        UserError: a recipe cannot work, or trials need different numbers of nodes or ranks.
    """
    points = design(folder.sweep)
    if points is None:
        return [base_recipe(folder.sweep)]
    recipes = [folder.recipe(number, parameters) for number, parameters in enumerate(points)]
    layouts = {(recipe.cluster.nodes, recipe.cluster.gpus_per_node) for recipe in recipes}
    if len(layouts) > 1:
        raise UserError(
            f"{folder.sweep.name}: trials of one sweep share a job array, so they need the same nodes and ranks; these "
            f"have {sorted(layouts)} (nodes, ranks per node). Fix: make one sweep per layout"
        )
    if any(rank_environment(recipe) != rank_environment(recipes[0]) for recipe in recipes):
        raise UserError(
            f"{folder.sweep.name}: trials of one sweep share a job script, so `environment` cannot vary between them. "
            "Fix: make one sweep per environment"
        )
    return recipes


def submit_sweep(plan: SweepPlan) -> list[Submitted]:
    """Writes `sweep.yaml` and the scripts; submits the array and the job that collects its results.

    Raises:
        UserError: the folder holds another sweep, or Slurm refuses.
    """
    if not plan.numbers:
        return []
    folder = plan.folder
    folder.write()
    (folder.path / "logs" / "slurm").mkdir(parents=True, exist_ok=True)
    script, results = write_script(folder.path, plan.script), write_script(folder.path, plan.results)
    refuse_if_slurm_would(script)
    for number in plan.numbers:
        if plan.trials[number].state == "failed":
            # Resets the count of attempts without progress.
            History(plan.trials[number].folder).add(
                "submitted", stage="train", link="trial", job=None, after=""
            )
    array = sbatch(script, [f"--array={plan.array}"])
    history = History(folder.path)
    history.add("submitted", stage="trials", link="trials", job=array, after="", trials=plan.numbers)
    collector = sbatch(results, [f"--dependency=afterany:{array}"])
    history.add("submitted", stage="results", link="results", job=collector, after=f"afterany:{array}")
    return [Submitted("trials", array, "", str(script)), Submitted("results", collector, "", str(results))]
