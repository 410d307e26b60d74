"""Builds a corpus in Slurm job arrays through datatrove's executor: one array per phase of a stage.

The jobs call the same functions on the same folder as a build on one machine; finished work is not repeated.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.extras import need
from emma.recipes.schema.slurm import Slurm
from emma.tools.corpus.build import finish_build, stages_of
from emma.tools.corpus.duplicates.needs import needs_of
from emma.tools.corpus.layout import STAGES
from emma.tools.corpus.stage import Build, Stage

__all__ = ["Close", "Share", "SlurmBuild", "submit"]


@dataclass(frozen=True)
class SlurmBuild:
    """Size and limits of the arrays.

    Attributes:
        tasks: array tasks per phase.
        concurrent: most array tasks that may run at the same time; None for no limit.
        time: time limit per task, `[days-]hours:minutes:seconds`.
        cluster: partition, account, quality of service, constraint, reservation.
    """

    tasks: int
    concurrent: int | None
    time: str
    cluster: Slurm


def _stage(build: Build, name: str) -> Stage:
    return list(stages_of(build, name))[-1]


@dataclass(frozen=True)
class Share:
    """A step of datatrove's pipeline: runs this rank's tasks of a phase."""

    build: Build
    stage: str
    phase: int

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Runs the share."""
        _stage(self.build, self.stage).run_share(self.phase, rank, world_size)


@dataclass(frozen=True)
class Close:
    """A step of datatrove's pipeline: ends a stage and, after the last one, writes the tables."""

    build: Build
    stage: str
    last: bool

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Ends the stage, unless this job already did so before it was requeued."""
        stage = _stage(self.build, self.stage)
        if not stage.is_done():
            stage.close(stage, stage.results(len(stage.phases)))
        if self.last:
            finish_build(self.build)


def submit(build: Build, settings: SlurmBuild, until: str = STAGES[-1]) -> list[dict[str, Any]]:
    """Submits the phases of all unfinished stages, each depending on the previous one.

    Returns:
        `stage`, `phase`, `tasks` and `job` of each array; an empty list if every stage is built.

    Raises:
        UserError: Slurm or datatrove is not installed, this is an array task itself, or Slurm refuses a job.
    """
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError("--slurm inside a Slurm array task: submit from a login node")
    if shutil.which("sbatch") is None:
        raise UserError("no Slurm here: sbatch is not in PATH; leave out --slurm to build on this machine")
    need("corpus", "--slurm", "datatrove")
    from emma.tools.corpus.slurm_executor import ArrayExecutor

    # Jobs run in this working folder, but an absolute path lets logs be found from anywhere.
    build = replace(build, root=build.root.absolute(), workers=1)
    common: dict[str, Any] = {
        "time": settings.time,
        "partition": settings.cluster.partition,
        "qos": settings.cluster.qos,
        "workers": settings.concurrent or -1,
        "env_command": f"export PATH={Path(sys.executable).parent}:$PATH",
        "skip_completed": False,  # the tasks' own marks are finer-grained
        "sbatch_args": {
            "account": settings.cluster.account,
            "constraint": settings.cluster.constraint,
            "reservation": settings.cluster.reservation,
            "kill-on-invalid-dep": "yes",
        },
    }
    jobs: list[dict[str, Any]] = []
    before = None
    for stage in stages_of(build, until):
        if stage.is_done():
            continue
        stage.begin()
        # (Without the stage before it, what the recipe allows is asked for; counts can only raise it.)
        needs = needs_of(build) if stage.name == "deduplicated" else None
        memory = needs.memory / 2**30 if needs is not None else build.corpus.memory_gib
        steps: list[tuple[str, int, Any]] = [
            (phase.name, 1 if phase.single else settings.tasks, Share(build, stage.name, number))
            for number, phase in enumerate(stage.phases)
        ]
        steps.append(("close", 1, Close(build, stage.name, stage.name == until)))
        for name, tasks, step in steps:
            logs = build.root / "logs" / f"{stage.name}-{name}"
            executor = ArrayExecutor(
                pipeline=[step],
                tasks=tasks,
                job_name=f"corpus-{build.data}-{stage.name}-{name}",
                logging_dir=str(logs),
                depends=before,
                mem_per_cpu_gb=math.ceil(memory),
                **common,
            )
            try:
                executor.run()
            except subprocess.CalledProcessError as error:
                raise UserError(
                    f"Slurm refused {logs / 'launch_script.slurm'} (exit code {error.returncode})"
                ) from None
            jobs.append({"stage": stage.name, "phase": name, "tasks": tasks, "job": str(executor.job_id)})
            before = executor
    return jobs
