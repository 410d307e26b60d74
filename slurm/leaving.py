"""Time to save: how long a job lives on when it is cancelled or preempted, and what is lost if that is too short.

The ranks end the step, save and leave on the first SIGTERM. How long they may take is the cluster's matter: `KillWait`
after `scancel`, `GraceTime` of the partition or QOS before that when the job is preempted, and the recipe's
`signal_seconds` ahead of the time limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

from emma.recipes.schema import Recipe
from emma.slurm import query
from emma.tools.plan.plan import Plan
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Window", "time_to_save", "windows"]

# Slurm looks at time limits once a minute.
_EARLY_SECONDS = 60
# Rows whose median speed stands for the run's.
_ROWS = 20


@dataclass(frozen=True)
class Window:
    """How long the ranks have from the first SIGTERM to SIGKILL.

    Attributes:
        what: what ends the job.
        seconds: how long.
        why: where the cluster says so.
    """

    what: str
    seconds: int
    why: str


def windows(recipe: Recipe) -> list[Window]:
    """The windows of a training job on this cluster; asks Slurm.

    Raises:
        SlurmError: it does not answer.
    """
    settings, slurm = query.configuration(), recipe.cluster.slurm
    wait = _number(settings.get("KillWait", "30"))
    found = [Window("scancel", wait, f"KillWait {wait} s")]
    if settings.get("PreemptType", "preempt/none") != "preempt/none":
        partition = query.partition(slurm.partition)
        modes = [settings.get("PreemptMode", "OFF")]
        grace, source = 0, "GraceTime"
        if partition is not None:
            modes, grace, source = (
                [partition.preempt_mode],
                partition.grace_seconds,
                "its partition's GraceTime",
            )
        if slurm.qos is not None and (qos := query.qos(slurm.qos)) is not None:
            modes.append(qos.preempt_mode)
            if qos.grace_seconds > grace:
                grace, source = qos.grace_seconds, "its QOS's GraceTime"
        # SUSPEND and GANG keep the processes; WITHIN is a permission.
        ends = [mode for mode in modes if re.search("REQUEUE|CANCEL", mode)]
        if ends:
            found.append(
                Window(f"preemption ({ends[0]})", grace + wait, f"{source} {grace} s and KillWait {wait} s")
            )
    limit = slurm.signal_seconds - _EARLY_SECONDS
    found.append(
        Window("the time limit", limit, f"cluster.slurm.signal_seconds {slurm.signal_seconds}, less a minute")
    )
    return found


def time_to_save(recipe: Recipe, plan: Plan | None, found: list[Window]) -> list[str]:
    """What to say about each window, in lines: whether the current step and a save fit, and what is lost if not.

    Args:
        recipe: the run.
        plan: its plan, for the time of a step where the run has logged none, and of a save.
        found: `windows`.
    """
    step, source = _seconds_per_step(recipe, plan)
    lines = []
    for window in found:
        said = f"{window.what}: {window.seconds} s to save ({window.why})"
        if step is None or plan is None:
            lines.append(f"{said}; no step was measured or planned, so whether that is enough can't be said")
            continue
        save = plan.checkpoints.planning_seconds + plan.checkpoints.seconds
        needs = f"a step and a save take {step + save:,.1f} s ({step:,.1f} {source} + {save:,.1f} planned)"
        if step + save <= window.seconds:
            lines.append(f"{said}; {needs}: they fit")
            continue
        steps = recipe.checkpoint.interval
        gpus = 0 if recipe.cluster.device == "cpu" else recipe.cluster.world_size
        hours = f", {steps * step * gpus / 3600:,.0f} GPU-hours" if gpus else ""
        lines.append(
            f"{said}; {needs}: they don't fit, and up to {steps:,} steps{hours} are lost. Fix: "
            + (
                "raise cluster.slurm.signal_seconds"
                if window.what == "the time limit"
                else "stop a run with `touch RUN/stop`, and lower checkpoint.interval"
            )
        )
    return lines


def _seconds_per_step(recipe: Recipe, plan: Plan | None) -> tuple[float | None, str]:
    rows = read_metrics(RunFolder(recipe.run_folder).metrics_file)[0][-_ROWS:]
    speeds = [row["tokens_per_second_per_gpu"] for row in rows if row.get("tokens_per_second_per_gpu")]
    if speeds:
        return recipe.tokens_per_step / median(speeds) / recipe.cluster.world_size, "measured"
    return (
        (plan.time.seconds_per_step, "planned") if plan is not None and plan.time is not None else (None, "")
    )


def _number(text: str) -> int:
    """The number at the head of a value such as `30 sec`."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match is not None else 0
