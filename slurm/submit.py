"""A run's chain of jobs: which stages are left, what waits for what, and the submission."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.base.sharing import shared
from emma.recipes.load import write_recipe
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import StageName, seconds
from emma.slurm import query
from emma.slurm.checks import Problems, check_account, check_base, check_inputs, check_partitions, check_paths
from emma.slurm.history import FOLDER, History
from emma.slurm.leaving import time_to_save, windows
from emma.slurm.nodes import bad_nodes
from emma.slurm.render import Script, render_stage, render_train
from emma.slurm.sbatch import refuse_if_slurm_would, sbatch
from emma.slurm.space import check_room
from emma.slurm.stages import STAGES, Stage, job_name, place, stage_job, stages_between
from emma.slurm.submissions import Note, SubmittedMeanwhileError, forget, note, of_others, sole_submitter
from emma.tools.plan.plan import Plan, make_plan
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.proven import refuse_unproven

__all__ = ["Chain", "Link", "Submitted", "SubmittedMeanwhileError", "plan_chain", "submit", "write_script"]

# Share of the wall time that is not training: starting the step, imports, loading, validation, saving.
_OVERHEAD = 0.1
# Training jobs queued at once: the last one requeues itself until the run is finished, so more would only fill the queue.
_QUEUED = 3


@dataclass(frozen=True)
class Link:
    """One job to submit.

    Attributes:
        script: what it runs.
        number, of: place among the jobs of its stage.
        after_ok: keys of the links that must succeed first.
        after_any: keys of the links that must end first.
        jobs_ok, jobs_any: ids of jobs already in the queue that must succeed, or end, first.
    """

    script: Script
    number: int = 1
    of: int = 1
    after_ok: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    jobs_ok: tuple[int, ...] = ()
    jobs_any: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Name of this link within its chain."""
        return f"{self.script.stage}-{self.number}" if self.of > 1 else self.script.stage

    @property
    def stage(self) -> str:
        """Name of its stage."""
        return self.script.stage.removesuffix("-finish")


@dataclass(frozen=True)
class Chain:
    """What a submission would do.

    Attributes:
        links: jobs to submit, in order.
        settled: stages that need no job, with the reason.
        plan: the training estimate, if training is among the links.
        problems: why a submission would be refused (dry runs only; otherwise the first is raised).
        leaving: how long training has to save when it is ended, and what is lost if that is too short.
        without: nodes that training leaves out, each with why.
    """

    recipe: Recipe
    links: tuple[Link, ...]
    settled: dict[str, str]
    plan: Plan | None
    problems: tuple[UserError, ...] = ()
    leaving: tuple[str, ...] = ()
    without: dict[str, str] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        """Stages that it submits, in order."""
        return [STAGES[name] for name in STAGES if any(link.stage == name for link in self.links)]

    @property
    def gpu_hours(self) -> float:
        """Upper limit of what the jobs can use: GPUs × time limit over all links. If fewer links are queued
        than training should need, its estimate counts instead, since the last link requeues itself."""
        training = sum(link.script.gpu_hours for link in self.links if link.script.stage == "train")
        others = sum(link.script.gpu_hours for link in self.links) - training
        expected = self.plan.time.gpu_hours if self.plan and self.plan.time and training else 0.0
        return others + max(training, expected)

    def to_dict(self) -> dict[str, Any]:
        """For `--dry-run --json`."""
        time = self.plan.time if self.plan else None
        return {
            "run": str(self.recipe.run_folder),
            "gpu_hours_at_most": self.gpu_hours,
            "gpu_hours_expected": time.gpu_hours if time else None,
            "settled": self.settled,
            "problems": [str(problem) for problem in self.problems],
            "time_to_save": list(self.leaving),
            "without_nodes": self.without,
            "jobs": [{**asdict(link), "key": link.key} for link in self.links],
        }


@dataclass(frozen=True)
class Submitted:
    """A job in the queue."""

    key: str
    job: int
    dependency: str
    script: str


def plan_chain(
    recipe: Recipe,
    first: StageName = "pack",
    last: StageName = "release",
    links: int | None = None,
    *,
    dry_run: bool = False,
) -> Chain:
    """Decides what a chain still needs.

    Stages whose output exists are left out, and so are stages that only feed one that is done. Stages already
    in the queue are not submitted again; later stages wait for them.

    Raises:
        UserError: an input is missing, the model does not fit its devices, the environment is unusable, or
            Slurm would refuse a partition or account. A dry run collects these in the chain's `problems`.
    """
    problems = Problems(dry_run)
    stages = stages_between(first, last)
    settled = _finished(recipe, stages)
    names = {stage.name: job_name(place(recipe, stage.name), stage.name) for stage in stages}
    queue: list[query.Job] = []
    with problems:
        queue = _queue([name for base in names.values() for name in (base, f"{base}-finish")])
    waiting = {
        stage.name: [job for job in queue if job.name in (names[stage.name], f"{names[stage.name]}-finish")]
        for stage in stages
    }
    others = dict[str, Note]()
    with problems:
        open_ = [stage for stage in stages if stage.name not in settled and not waiting[stage.name]]
        others = _others(open_, recipe, ask=not dry_run)
    left = [
        stage
        for stage in stages
        if stage.name not in settled and not waiting[stage.name] and stage.name not in others
    ]
    first_left = [stage for stage in stages if stage.name not in settled][:1]
    plan = None
    if any(stage.name == "train" for stage in left):
        with problems:
            plan = make_plan(recipe)
        with problems:
            refuse_unproven(recipe)
    if left:
        if first_left == left[:1]:
            with problems:
                check_inputs(recipe, left)
        with problems:
            check_base(recipe, left)
        with problems:
            check_paths(recipe)
        with problems:
            check_room(recipe, left)
        if _has_slurm() and not any(isinstance(problem, query.SlurmError) for problem in problems.found):
            with problems:
                check_account(recipe)
            with problems:
                check_partitions(recipe, left)
        with problems:
            RunFolder(recipe.run_folder).check_recipe(recipe)
        with problems:
            _refuse_ended(recipe)
    leaving: list[str] = []
    without = dict[str, str]()
    if any(stage.name == "train" for stage in left) and _has_slurm():
        with problems:
            leaving = time_to_save(recipe, plan, windows(recipe))
        with problems:
            without = _nodes_to_leave_out(recipe)
    made: list[Link] = []
    # What the next stage waits for.
    before = dict[str, Any]()
    for stage in stages:
        if stage.name in settled:
            continue
        if waiting[stage.name]:
            numbers = sorted({job.array for job in waiting[stage.name]})
            settled[stage.name] = "in the queue: " + ", ".join(map(str, numbers))
            before = {"jobs_ok": (numbers[-1],)}
            continue
        if stage.name in others:
            settled[stage.name] = f"in the queue: {others[stage.name]}"
            # A run that finishes early cancels the links that it no longer needs and redirects what waits for them
            # (`conclude` in train.sh.j2), but only its own user's jobs. Others' wait for the end, and look for the last
            # checkpoint themselves.
            ending = "any" if stage.name == "train" else "ok"
            before = {f"jobs_{ending}": (others[stage.name].job,)}
            continue
        new = _links(recipe, stage, before, links or _link_count(recipe, plan))
        made += new
        before = {"after_ok": (new[-1].key,)}
    return Chain(recipe, tuple(made), settled, plan, tuple(problems.found), tuple(leaving), without)


def _refuse_ended(recipe: Recipe) -> None:
    """Refuses a run that its guard has ended, unless the phase is still to be written, which its first job does."""
    run = RunFolder(recipe.run_folder)
    decision = run.standing_decision(recipe)
    if decision is not None and (decision.action == "stop" or decision.phase or decision.refused):
        more = (
            f". Fix: submit that run: `emma slurm submit {run.path.parent / decision.phase}`"
            if decision.phase
            else ""
        )
        raise UserError(decision.refusal(run.path) + more)


def _finished(recipe: Recipe, stages: Sequence[Stage]) -> dict[str, str]:
    """Stages with nothing left to do. The checkpoints behind a finished export may have been deleted."""
    done = {stage.name: stage.done(recipe) for stage in stages_between("pack", "release")}
    fed: dict[StageName, tuple[StageName, ...]] = {
        "pack": ("train", "convert", "release"),
        "mix": ("train", "convert", "release"),
        "train": ("convert", "release"),
        "convert": ("release",),
    }
    settled: dict[str, str] = {}
    for stage in stages:
        if done[stage.name]:
            settled[stage.name] = "done"
        elif later := next((name for name in fed.get(stage.name, ()) if done[name]), None):
            settled[stage.name] = f"not needed: {later} is done"
    return settled


def _has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def _queue(names: list[str]) -> list[query.Job]:
    return query.jobs(names) if _has_slurm() else []


def _others(stages: Sequence[Stage], recipe: Recipe, *, ask: bool) -> dict[str, Note]:
    """Stages that another user's job is to do."""
    if not _has_slurm():
        return {}
    return {stage.name: found for stage in stages if (found := of_others(recipe, stage, ask=ask)) is not None}


def _nodes_to_leave_out(recipe: Recipe) -> dict[str, str]:
    """Nodes that failed a preflight lately; none where the partition has no others to spare."""
    bad = bad_nodes(Path(recipe.paths.runs), query.configuration().get("ClusterName"))
    partition = query.partition(recipe.cluster.slurm.partition)
    enough = partition is None or partition.nodes - len(bad) >= recipe.cluster.nodes
    return bad if enough else {}


def _link_count(recipe: Recipe, plan: Plan | None) -> int:
    """Number of training jobs for the estimated time, plus a tenth for starting, loading, and validating, as far as they
    are queued at once."""
    slurm = recipe.cluster.slurm
    if slurm.links is not None or plan is None or plan.time is None:
        return slurm.links or 1
    left = 1 - RunFolder(recipe.run_folder).latest_step() / recipe.schedule.steps
    each = (seconds(slurm.time_limit) - slurm.signal_seconds) * (1 - _OVERHEAD)
    return min(_QUEUED, max(1, math.ceil(plan.time.days * 86400 * left / each)))


def _links(recipe: Recipe, stage: Stage, before: dict[str, Any], count: int) -> list[Link]:
    if stage.name == "train":
        script = render_train(recipe)
        made: list[Link] = []
        for number in range(1, count + 1):
            previous = {"after_any": (made[-1].key,)} if made else {}
            made.append(Link(script, number, count, **{**before, **previous}))
        return made
    link = Link(render_stage(recipe, stage.name), **before)
    if stage.after is None or not stage.after(recipe, stage_job(recipe, stage.name)):
        return [link]
    return [link, Link(render_stage(recipe, stage.name, finish=True), after_ok=(link.key,))]


def write_script(run: Path, script: Script) -> Path:
    """Writes a script into the run folder, where the job's log and its successors find it."""
    path = run / FOLDER / f"{script.stage}.sbatch"
    write_text(path, script.text)
    return path


def submit(chain: Chain) -> list[Submitted]:
    """Writes the resolved recipe and the scripts into the run folder, and submits the jobs.

    Jobs read the run folder's recipe, so editing a recipe file does not affect jobs in the queue.

    Raises:
        UserError: Slurm refuses a job. Whatever goes wrong, the jobs submitted before it are cancelled.
    """
    if not chain.links:
        return []
    run, stages = chain.recipe.run_folder.absolute(), chain.stages
    with shared(run), sole_submitter(chain.recipe, stages):
        return _submit(chain, run, stages)


def _submit(chain: Chain, run: Path, stages: Sequence[Stage]) -> list[Submitted]:
    recipe = chain.recipe
    scripts = {link.script.stage: link.script for link in chain.links}
    (run / "logs" / "slurm").mkdir(parents=True, exist_ok=True)
    for script in scripts.values():
        refuse_if_slurm_would(write_script(run, script))
    write_recipe(recipe, run / "recipe.yaml")
    history, numbers, done = History(run), dict[str, int](), list[Submitted]()
    try:
        for link in chain.links:
            dependency = _dependency(link, numbers)
            path = run / FOLDER / f"{link.script.stage}.sbatch"
            exclude = (
                [f"--exclude={','.join(chain.without)}"] if link.stage == "train" and chain.without else []
            )
            number = sbatch(path, [f"--dependency={dependency}", "--kill-on-invalid-dep=yes", *exclude])
            numbers[link.key] = number
            done.append(Submitted(link.key, number, dependency, str(path)))
            history.add("submitted", stage=link.script.stage, link=link.key, job=number, after=dependency)
        for stage in stages:
            last = [job.job for job, link in zip(done, chain.links, strict=True) if link.stage == stage.name][
                -1
            ]
            note(recipe, stage, last)
    except BaseException:
        if numbers:
            query.run_slurm(["scancel", *map(str, numbers.values())])
        forget(recipe, stages)
        raise
    return done


def _dependency(link: Link, numbers: dict[str, int]) -> str:
    conditions = [f"afterok:{numbers[key]}" for key in link.after_ok]
    conditions += [f"afterok:{job}" for job in link.jobs_ok]
    conditions += [f"afterany:{numbers[key]}" for key in link.after_any]
    conditions += [f"afterany:{job}" for job in link.jobs_any]
    return ",".join([*conditions, "singleton"])
