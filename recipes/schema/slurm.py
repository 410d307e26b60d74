"""The part of the `cluster` section that says how jobs are submitted."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from emma.recipes.schema.section import Section

__all__ = ["CONTAINERS", "Event", "Notification", "Slurm", "StageJob", "StageName", "seconds"]

StageName = Literal["pack", "mix", "train", "convert", "evaluate", "release"]

CONTAINERS = ("apptainer", "singularity", "pyxis")
"""Templates whose commands run in a container."""

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})")


def seconds(time_limit: str) -> int:
    """Seconds of a time limit `[days-]hours:minutes:seconds`.

    Raises:
        ValueError: another form.
    """
    match = _TIME.fullmatch(time_limit)
    if match is None:
        raise ValueError(
            f"{time_limit!r} is not a time limit; write [days-]hours:minutes:seconds, e.g. 1-12:00:00"
        )
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


class StageJob(Section):
    """The job of a stage other than training: one task on one node."""

    partition: str | None = None
    """Partition; default: that of training."""
    time_limit: str = "04:00:00"
    """Wall time, `[days-]hours:minutes:seconds`."""
    cpus: int = Field(1, gt=0)
    """Cores of the job (of each array task)."""
    memory: str | None = None
    """Memory per node, as for `sbatch --mem`, e.g. `64G`; default: the partition's."""
    gpus: int | None = Field(None, ge=0)
    """GPUs of the job; default: one for `evaluate` on a cluster with GPUs, else none."""
    tasks: int = Field(1, gt=0)
    """Array tasks that share the work (`pack`, and `evaluate` of benchmarks)."""
    concurrent: int | None = Field(None, gt=0)
    """Array tasks that may run at the same time; default: all."""
    arguments: list[str] = Field(default_factory=list)
    """Further arguments of the stage's command, e.g. `["--base", "models/llama3"]` for evaluate."""

    @field_validator("time_limit")
    @classmethod
    def _time_limit(cls, value: str) -> str:
        seconds(value)
        return value


Event = Literal["started", "saved", "stalled", "given up", "finished"]


_TOLD: tuple[Event, ...] = ("stalled", "given up", "finished")


class Notification(Section):
    """Who is told what happens to a run's training; one of `command`, `mail` and `webhook`."""

    events: list[Event] = Field(default_factory=lambda: list(_TOLD))
    """Events to tell."""
    command: str | None = None
    """Shell command, with EMMA_EVENT, EMMA_RUN, EMMA_FOLDER, EMMA_JOB and EMMA_TEXT in its environment."""
    mail: str | None = None
    """Address, by the `sendmail` of the job's first node."""
    webhook: str | None = None
    """Address that gets a JSON object with `event`, `run`, `folder`, `job` and `text`, as Slack's and Mattermost's
    incoming webhooks take it."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.command, self.mail, self.webhook)) != 1:
            raise ValueError("name one of command, mail and webhook; for more, add another entry")
        if self.webhook is not None and not self.webhook.startswith(("https://", "http://")):
            raise ValueError(f"webhook: {self.webhook!r} is not an http or https address")
        return self


class Slurm(Section):
    """How jobs are submitted on this cluster, and the environment they run in."""

    later: ClassVar[frozenset[str]] = frozenset({"notify", "startup_seconds", "stall_seconds"})

    template: str = "venv"
    """Template of the job scripts: `venv`, `apptainer`, `singularity`, `pyxis`, or the path of your own file, ending in
    `.j2` (`{% extends "job.sh.j2" %}` reuses the shipped parts)."""
    partition: str | None = None
    """Partition of the training jobs; default: Slurm's default partition."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation to run in."""
    constraint: str | None = None
    """Features that the nodes must have."""
    requires: list[Literal["account", "qos", "partition", "constraint", "reservation"]] = Field(
        default_factory=list
    )
    """Settings that this cluster requires; submission is refused if one is missing."""
    time_limit: str = "24:00:00"
    """Wall time of one training job, `[days-]hours:minutes:seconds`."""
    signal_seconds: int = Field(600, ge=30)
    """SIGTERM reaches the ranks this many seconds before the time limit (Slurm may be a minute early), which must
    suffice for the current step and a checkpoint."""
    links: int | None = Field(None, gt=0)
    """Training jobs queued one after another; default: as many as the estimated time needs, but at most 3, or 1 without
    an estimate. The last one requeues itself until the run is finished."""
    attempts: int = Field(3, gt=0)
    """A run is given up after this many jobs in a row without a new checkpoint."""
    stall_seconds: int = Field(600, gt=0)
    """Ranks that make no progress for this long, and for ten times as long as a step, save or validation has taken
    so far, are ended, and the run goes on from its checkpoint."""
    startup_seconds: int = Field(1800, gt=0)
    """Ranks may take this long to start, import, load and train their first step."""
    notify: list[Notification] = Field(default_factory=list)
    """Who is told by mail, webhook or command, e.g. `[{mail: me@example.org, events: [stalled]}]`."""
    exclusive: bool = True
    """Training takes whole nodes."""
    gpu_option: str = "--gpus-per-node={gpus}"
    """Option that requests GPUs; `{gpus}` is the number per node, e.g. `--gres=gpu:h100:{gpus}`."""
    cpus_per_rank: int | None = Field(None, gt=0)
    """Cores per rank; default: the cluster's."""
    memory: str | None = None
    """Memory per node, as for `sbatch --mem`; `0` is all of it. Default: the partition's."""
    sbatch: list[str] = Field(default_factory=list)
    """Further options of every job, one an entry, e.g. `--licenses=scratch`."""
    srun: list[str] = Field(default_factory=list)
    """Further options of the `srun` that starts the ranks, one an entry, e.g. `--cpu-bind=none` or `--mpi=none`."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines at the top of every job, before modules."""
    modules: list[str] = Field(default_factory=list)
    """Environment modules to load."""
    venv: str | None = None
    """Virtual environment with this project (template `venv`); default: the one that `emma` runs in."""
    container: str | None = None
    """Image with this project (templates `apptainer`, `singularity` and `pyxis`): a .sif or .sqsh file, or a name in a
    registry."""
    mounts: list[str] = Field(default_factory=list)
    """Folders that the container sees, `path`, `path:inside` or `path:inside:ro`. The working folder is always among
    them; the folders of the run must be, at the same place inside as outside."""
    network_interface: str | None = None
    """Interface for control traffic (NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME), e.g. `ib0` or `hsn`; default: NCCL's
    and gloo's own choice."""
    preflight: bool = True
    """Test the nodes before training: number of devices, free memory, a matrix product, an all-reduce, disk."""
    confirm_gpu_hours: float = Field(100.0, ge=0)
    """Submissions that may use more GPU-hours than this ask for confirmation."""
    stages: dict[StageName, StageJob] = Field(default_factory=dict)
    """Jobs of the stages around training."""

    @field_validator("time_limit")
    @classmethod
    def _time_limit(cls, value: str) -> str:
        seconds(value)
        return value

    @field_validator("gpu_option", "sbatch", "srun")
    @classmethod
    def _options(cls, value: str | list[str]) -> str | list[str]:
        for option in [value] if isinstance(value, str) else value:
            if not option.startswith("-") or re.match(r"[^=\s]*\s|\S+\s+-", option):
                raise ValueError(f"{option!r} is not one option; write --name=value, one an entry")
        return value

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, value: list[str]) -> list[str]:
        for mount in value:
            if not re.fullmatch(r"[^:,]+(:[^:,]+(:(ro|rw))?)?", mount):
                raise ValueError(
                    f"{mount!r} is not a mount; write path, path:inside or path:inside:ro, without commas"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "train" in self.stages:
            raise ValueError("stages.train: training is described by the keys of slurm itself; remove it")
        for name, job in self.stages.items():
            benchmarks = any(part.startswith(("--tier", "--benchmarks")) for part in job.arguments)
            if name == "evaluate" and job.tasks > 1 and not benchmarks:
                raise ValueError(
                    f"stages.evaluate.tasks: {job.tasks}, but held-out text is not shared by array tasks; name "
                    "--tier or --benchmarks in stages.evaluate.arguments, or leave tasks out"
                )
            if name not in ("pack", "evaluate") and job.tasks > 1:
                raise ValueError(
                    f"stages.{name}.tasks: {job.tasks}, but only pack and evaluate can be shared by array tasks"
                )
        if self.template in CONTAINERS and self.container is None:
            raise ValueError(f"template: {self.template} needs a container")
        if self.template not in ("venv", *CONTAINERS) and not self.template.endswith(".j2"):
            raise ValueError(
                f"template: {self.template!r} is none of venv, {', '.join(CONTAINERS)}; a file of your own ends in .j2"
            )
        if seconds(self.time_limit) <= self.signal_seconds:
            raise ValueError(
                f"time_limit ({self.time_limit}) leaves no time to train before the signal {self.signal_seconds} s ahead of it"
            )
        return self
