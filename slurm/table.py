"""`emma slurm jobs`: one row per job or run, from the queue and the run folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.slurm import query
from emma.slurm.history import History
from emma.slurm.sweep import trial_name
from emma.slurm.watch import silence
from emma.tools.runs.decision import latest_phase
from emma.tools.runs.forgetting import Look
from emma.tools.runs.goodput import goodput, launch_ends
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import GUARDED, RunFolder

__all__ = ["Row", "collect", "find_runs", "table_text"]

_COMMENT = "emma"


@dataclass(frozen=True)
class Row:
    """A job in the queue, or a run that has none.

    Attributes:
        run: name of the run.
        stage: stage of the job; `train` for a run without a job.
        job: id, with the array task; None without a job.
        state: Slurm's state and, if pending, what the job waits for; without a job, what became of the run,
            e.g. `finished` or `given up`.
        step, steps: current and planned optimizer steps (this and all below: training only).
        tokens: consumed so far.
        loss: at the last logged step.
        tokens_per_second: over all devices, at the last logged step.
        seconds_left: until the last step, at that speed.
        checkpoint: step of the latest complete checkpoint.
        silent: seconds without progress, of a job whose ranks run; `silent_limit`: when they count as stalled.
        doing: what they do: `start-up`, `step`, `save`, `validation`, `end`, or `no ranks`.
        goodput: share of the run's device-hours that went into steps which count.
        forgotten: groups that the guard found above their bounds at the latest validation, in words.
        ended: how each earlier launch ended, oldest first.
        next: jobs that wait for this one.
    """

    run: str
    folder: str
    stage: str
    job: str | None
    state: str
    time_left: str | None = None
    step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None
    silent: float | None = None
    silent_limit: float | None = None
    doing: str | None = None
    goodput: float | None = None
    forgotten: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    next: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)


def find_runs(places: Iterable[Path]) -> list[Path]:
    """Run folders among `places`; each place is a run folder or contains some.

    Raises:
        UserError: a place is not a folder.
    """
    found = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder. Fix: name a run folder or a folder of runs")
        if (place / "recipe.yaml").is_file():
            found.append(place.absolute())
        else:
            found += sorted(file.parent.absolute() for file in place.glob("*/recipe.yaml"))
    return found


def collect(runs: Sequence[Path], queue: Sequence[query.Job] | None = None) -> list[Row]:
    """Rows of all this project's jobs in the queue, and of the runs in `runs` that have none.

    Args:
        runs: run folders to show besides those in the queue.
        queue: this user's jobs; by default, asks Slurm.
    """
    queue = query.jobs() if queue is None else queue
    ours = [(job, *_stage_and_folder(job)) for job in queue if job.comment.startswith(f"{_COMMENT} ")]
    ours.sort(key=lambda each: (each[2], each[0].array, each[0].state == "PENDING", each[0].id))
    rows = []
    for job, stage, folder in ours:
        run = _trial(job, folder) if stage == "trials" else folder
        if stage == "train":
            run = latest_phase(run)  # its guard may have begun one
        facts = _training_facts(run) if stage == "train" or run != folder else {}
        if facts and job.state == "RUNNING":
            facts |= _silence(run)
        number = f"{job.array}_{job.task}" if job.task is not None else str(job.id)
        rows.append(
            Row(
                run=str(run.relative_to(folder.parent)),
                folder=str(run),
                stage=stage,
                job=number,
                state=_state(job),
                time_left=job.time_left if job.state == "RUNNING" else None,
                next=_next(job, [other for other, _, _ in ours]),
                **facts,
            )
        )
    queued = {row.folder for row in rows} | {str(folder) for _, _, folder in ours}
    rows += [_without_job(folder) for folder in runs if str(folder) not in queued]
    return rows


def _stage_and_folder(job: query.Job) -> tuple[str, Path]:
    _, stage, folder = job.comment.split(" ", 2)
    return stage, Path(folder)


def _trial(job: query.Job, sweep: Path) -> Path:
    """Run folder of the trial that an array task trains; the sweep's folder for tasks that wait together."""
    return sweep / trial_name(int(job.task)) if job.task is not None and job.task.isdigit() else sweep


def _state(job: query.Job) -> str:
    if job.state != "PENDING":
        return job.state.lower()
    conditions = ", ".join(part for part in _conditions(job) if part != "singleton")
    waits = f"after {conditions}" if conditions and job.reason == "Dependency" else job.reason
    return f"pending ({waits})" if waits and waits != "None" else "pending"


def _conditions(job: query.Job) -> list[str]:
    """What a job waits for; Slurm writes an array as `12_*`."""
    return [part.removesuffix("_*") for part in job.dependency.split(",") if part]


def _next(job: query.Job, queue: Sequence[query.Job]) -> str | None:
    """Jobs that wait for this one, or that share its name and wait for their turn."""
    waiting = []
    for other in queue:
        conditions = [number for part in _conditions(other) for number in part.split(":")]
        if other.id != job.id and (str(job.array) in conditions or str(job.id) in conditions):
            waiting.append(other.array)
    return ", ".join(str(number) for number in sorted(set(waiting))) or None


def _training_facts(folder: Path) -> dict[str, Any]:
    """A training job's columns, from its run folder; empty before the first launch."""
    if not (folder / "recipe.yaml").is_file():
        return {}
    recipe, run = load_recipe(folder), RunFolder(folder)
    steps = recipe.schedule.steps
    facts: dict[str, Any] = {"steps": steps, "step": 0, "checkpoint": run.latest_step() or None}
    share = goodput(recipe, run)
    facts |= {"goodput": share.share if share else None}
    facts |= {"ended": tuple(str(end) for end in launch_ends(run) if end.how is not None)}
    logged, validations = read_metrics(run.metrics_file)
    if validations:
        looks = (Look(**look) for look in validations[-1].get("guard", ()))
        facts |= {"forgotten": tuple(str(look) for look in looks if look.forgotten)}
    if not logged:
        return facts
    last = logged[-1]
    speed = last["tokens_per_second_per_gpu"] * recipe.cluster.world_size
    facts |= {
        "step": last["step"],
        "tokens": last["consumed_tokens"],
        "loss": last["loss"],
        "tokens_per_second": speed,
    }
    facts["seconds_left"] = (steps - last["step"]) * recipe.tokens_per_step / speed if speed else None
    return facts


def _silence(folder: Path) -> dict[str, Any]:
    """How long the launch that writes the run has made no progress."""
    run = RunFolder(folder)
    writer = run.claims.writer()
    launch = run.read_launch() if writer is not None else None
    if writer is None or launch is None or launch.number != writer.number:
        return {}
    found = silence(load_recipe(folder), launch)
    return {"silent": found.seconds, "silent_limit": found.limit, "doing": found.phase}


def _without_job(folder: Path) -> Row:
    recipe = load_recipe(folder)
    facts = _training_facts(folder)
    facts["seconds_left"] = None
    facts["tokens_per_second"] = None
    state = _idle_state(recipe, RunFolder(folder))
    return Row(folder.name, str(folder), "train", None, state, **facts)


def _idle_state(recipe: Recipe, run: RunFolder) -> str:
    if run.finished(recipe):
        return "finished"
    if run.stop_request.exists():
        return "stopped by request"
    if (decision := run.standing_decision(recipe)) is not None:
        return f"goes on in {decision.phase}" if decision.phase else f"{GUARDED} at step {decision.step}"
    history = History(run.path)
    if history.attempts_without_progress(run.latest_step()) >= recipe.cluster.slurm.attempts:
        return "given up"
    # A retried trial has no job of its own, only its array's.
    numbers = [e["job"] for e in history.submitted() if e["stage"] == "train" and e["job"] is not None]
    if not numbers:
        return "not submitted"
    ended = query.ended_jobs(numbers[-1:]).get(str(numbers[-1]))
    return f"job {numbers[-1]} {ended.state.lower()}" if ended else "no job left"


_COLUMNS = "run stage job state left step tokens loss tokens/s ends checkpoint silent goodput next".split()

_SHOWN = 3
"""Ends of earlier launches below the table, of each run."""


def table_text(rows: Sequence[Row]) -> str:
    """The rows as a table for a terminal."""
    if not rows:
        return "no jobs, and no runs here"
    cells = [_COLUMNS, *([_cell(value) for value in _values(row)] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(_COLUMNS))]
    right = {"left", "step", "tokens", "loss", "tokens/s", "ends", "checkpoint", "silent", "goodput"}
    lines = []
    for line in cells:
        parts = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    forgotten = {row.run: row.forgotten for row in rows if row.forgotten}
    lines += [""] if forgotten else []
    lines += [f"{run} forgets: {'; '.join(groups)}" for run, groups in forgotten.items()]
    ended = {row.run: row.ended for row in rows if row.ended}
    lines += [""] if ended else []
    for run, ends in ended.items():
        earlier = f"{len(ends) - _SHOWN} earlier; " if len(ends) > _SHOWN else ""
        lines.append(f"{run} ended before: {earlier}{'; '.join(ends[-_SHOWN:])}")
    return "\n".join(lines)


def _values(row: Row) -> list[str | None]:
    return [
        row.run,
        row.stage,
        row.job,
        row.state,
        row.time_left,
        None if row.step is None else f"{row.step:,}/{row.steps:,}",
        None if row.tokens is None else _short(row.tokens),
        None if row.loss is None else f"{row.loss:.3f}",
        None if row.tokens_per_second is None else _short(row.tokens_per_second),
        None if row.seconds_left is None else _duration(row.seconds_left),
        None if row.checkpoint is None else f"{row.checkpoint:,}",
        None if row.silent is None else _silent(row),
        None if row.goodput is None else f"{row.goodput:.0%}",
        row.next,
    ]


def _silent(row: Row) -> str:
    """Seconds since the last sign of progress, and in which phase; marked where it is long."""
    assert row.silent is not None
    mark = " !" if row.silent > (row.silent_limit or row.silent) / 2 else ""
    return f"{_duration(row.silent)} ({row.doing}){mark}"


def _cell(value: str | None) -> str:
    return "-" if value is None else value


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, rest = divmod(minutes, 24 * 60)
    if days:
        return f"{days}d {rest // 60}h"
    return f"{rest // 60}h {rest % 60:02d}m" if rest >= 60 else f"{rest}m" if rest else f"{seconds:.0f}s"
