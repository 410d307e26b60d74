"""What Slurm reports: jobs, partitions, accounts. Every call runs a Slurm command; nothing is cached."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from emma.base.errors import UserError

__all__ = [
    "Ended",
    "Job",
    "Partition",
    "SlurmError",
    "accounts",
    "array_tasks",
    "configuration",
    "ended_jobs",
    "exists",
    "jobs",
    "needs_account",
    "nodes",
    "parse_accounting",
    "parse_jobs",
    "parse_nodes",
    "parse_partitions",
    "partition",
    "partitions",
    "qos",
    "user_qos",
    "run_slurm",
]

_JOB_FIELDS = ("%A", "%F", "%K", "%T", "%P", "%D", "%L", "%S", "%r", "%N", "%E", "%j", "%k")
_SEPARATOR = "\x1f"
_FINAL = frozenset(
    "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY".split()
)


_NOWHERE = ". Fix: run this on a login node of a Slurm cluster"


class SlurmError(UserError):
    """A Slurm command failed; the message is Slurm's own."""


def run_slurm(arguments: Sequence[str]) -> str:
    """Standard output of a Slurm command.

    Raises:
        SlurmError: the command does not exist or failed; the message holds its output.
    """
    if shutil.which(arguments[0]) is None:
        raise SlurmError(f"{arguments[0]}: not found{_NOWHERE}")
    # 0: squeue writes an array's waiting tasks in full.
    environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}
    done = subprocess.run(list(arguments), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        away = "configuration source" in said or "Unable to contact slurm controller" in said
        raise SlurmError(f"{arguments[0]}: {said}{_NOWHERE if away else ''}")
    return done.stdout


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, as `squeue` shows it.

    Attributes:
        id: job id; each task of an array has its own.
        array: id of the array, which dependencies name (equals `id` outside arrays).
        task: array task, e.g. `3`, or `0-3%2` for tasks that wait together; None outside arrays.
        state: Slurm's word, e.g. PENDING, RUNNING, COMPLETING.
        time_left: `[days-]hours:minutes:seconds` until the time limit.
        dependency: what it waits for, e.g. `afterok:12`.
        comment: as given to `sbatch --comment`.
    """

    id: int
    array: int
    task: str | None
    state: str
    partition: str
    nodes: int
    time_left: str
    start: str
    reason: str
    node_list: str
    dependency: str
    name: str
    comment: str

    @property
    def active(self) -> bool:
        """Whether it is waiting or running."""
        return self.state not in _FINAL


def parse_jobs(text: str) -> list[Job]:
    """Jobs from the output of `squeue` in the format that `jobs` requests."""
    found = []
    for line in text.splitlines():
        values = line.split(_SEPARATOR)
        if len(values) != len(_JOB_FIELDS):
            raise SlurmError(f"squeue: expected {len(_JOB_FIELDS)} fields, got {len(values)}: {line!r}")
        number, array, task, state, partition, nodes, left, start, reason, node_list, waits, name, comment = (
            values
        )
        found.append(
            Job(
                id=int(number),
                array=int(array),
                task=None if task == "N/A" else task,
                state=state,
                partition=partition,
                nodes=int(nodes),
                time_left=left,
                start=start,
                reason=reason,
                node_list=node_list,
                dependency="" if waits == "(null)" else re.sub(r"\([a-z]+\)", "", waits),
                name=name,
                comment="" if comment == "(null)" else comment,
            )
        )
    return found


def array_tasks(task: str) -> list[int]:
    """Numbers of the array tasks that `squeue` shows in one line, e.g. `0-3,5%2`."""
    numbers: list[int] = []
    for part in task.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def jobs(names: Sequence[str] = ()) -> list[Job]:
    """This user's waiting and running jobs, optionally only those named in `names`."""
    command = ["squeue", "--me", "--noheader", f"--format={_SEPARATOR.join(_JOB_FIELDS)}"]
    if names:
        command.append(f"--name={','.join(names)}")
    return [job for job in parse_jobs(run_slurm(command)) if job.active]


def exists(job: int, options: Sequence[str] | None = ()) -> bool:
    """Whether a job, anybody's, is waiting or running.

    Where jobs are private `squeue` shows only this user's. Then the scheduler is asked through a job of one's own, on
    hold and cancelled at once: whether what it would wait for has ended.

    Args:
        job: its id.
        options: what this cluster wants of that job of one's own, e.g. `--account=...`; None: make none, and say yes.
    """
    shown = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, check=False
    )
    states = shown.stdout.split()
    if states:
        return any(state not in _FINAL for state in states)
    if "jobs" not in configuration().get("PrivateData", ""):
        return False
    if options is None:
        return True
    own = ["--hold", f"--dependency=afterany:{job}", "--output=/dev/null", "--wrap=true"]
    probe = run_slurm(["sbatch", "--parsable", *options, *own]).strip().split(";")[0]
    try:
        waits = run_slurm(["squeue", "--noheader", f"--jobs={probe}", "--format=%E"])
    finally:
        run_slurm(["scancel", probe])
    return f":{job}(unfulfilled)" in waits


@dataclass(frozen=True)
class Partition:
    """A partition: its longest wall time in seconds (None: no limit), its number of nodes, and what preemption does to
    its jobs, after how many seconds of grace."""

    name: str
    default: bool
    up: bool
    max_seconds: int | None
    nodes: int
    preempt_mode: str = "OFF"
    grace_seconds: int = 0


def parse_partitions(text: str) -> dict[str, Partition]:
    """Partitions by name, from `scontrol --oneliner show partition`."""
    found = {}
    for line in text.splitlines():
        values = dict(item.split("=", 1) for item in line.split() if "=" in item)
        if "PartitionName" not in values:
            continue
        found[values["PartitionName"]] = Partition(
            name=values["PartitionName"],
            default=values.get("Default") == "YES",
            up=values.get("State", "UP") == "UP",
            max_seconds=_seconds(values.get("MaxTime", "UNLIMITED")),
            nodes=int(values.get("TotalNodes", 0)),
            preempt_mode=values.get("PreemptMode", "OFF"),
            grace_seconds=int(values.get("GraceTime", 0)),
        )
    return found


def partitions() -> dict[str, Partition]:
    """This cluster's partitions by name."""
    return parse_partitions(run_slurm(["scontrol", "--oneliner", "show", "partition"]))


def partition(name: str | None) -> Partition | None:
    """The partition of that name, or the default one for None; None where there is none."""
    known = partitions()
    return known.get(name) if name is not None else next((p for p in known.values() if p.default), None)


def _seconds(limit: str) -> int | None:
    if limit in ("UNLIMITED", "INFINITE", "NONE"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    parts = [0] * (3 - len(parts)) + parts
    return ((int(days or 0) * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]


@dataclass(frozen=True)
class Node:
    """A node: its partitions, its cores, its memory in MiB, and its GPUs with Slurm's name for them."""

    name: str
    partitions: list[str]
    cores: int
    memory_mib: int
    gpus: int
    gpu: str


def parse_nodes(text: str) -> list[Node]:
    """Nodes from `scontrol --oneliner show node`."""
    found = []
    for line in text.splitlines():
        # Values such as `OS=` and `Reason=` hold spaces; none of those read here does.
        values = dict(item.split("=", 1) for item in line.split() if "=" in item)
        if "NodeName" not in values:
            continue
        gpus, name = 0, ""
        # gpu:4, gpu:h100:4, gpu:h100:4(S:0-1), and several kinds separated by commas.
        for kind, count in re.findall(r"\bgpu(?::([A-Za-z][\w.-]*))?:(\d+)", values.get("Gres", "")):
            gpus, name = gpus + int(count), name or kind
        threads = int(values.get("ThreadsPerCore", 1))
        found.append(
            Node(
                name=values["NodeName"],
                partitions=values.get("Partitions", "").split(","),
                cores=int(values.get("CPUTot", 1)) // threads,
                memory_mib=int(values.get("RealMemory", 0)),
                gpus=gpus,
                gpu=name,
            )
        )
    return found


def nodes() -> list[Node]:
    """This cluster's nodes."""
    return parse_nodes(run_slurm(["scontrol", "--oneliner", "show", "node"]))


def user_qos() -> list[str]:
    """Qualities of service that this user may ask for. Needs the accounting database."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}"]
    listed = run_slurm([*command, "format=qos"])
    return sorted({name for line in listed.splitlines() for name in line.split(",") if name})


@dataclass(frozen=True)
class Qos:
    """A quality of service: what preemption does to its jobs, after how many seconds of grace."""

    preempt_mode: str
    grace_seconds: int


def qos(name: str) -> Qos | None:
    """A quality of service from the accounting database; None where there is none, or no such QOS."""
    try:
        command = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", f"name={name}"]
        listed = run_slurm([*command, "format=preemptmode,gracetime"])
    except SlurmError:
        return None
    for line in listed.splitlines():
        mode, _, grace = line.partition("|")
        return Qos(mode.upper(), _seconds(grace) or 0 if grace else 0)
    return None


def configuration() -> dict[str, str]:
    """Slurm's settings by name, from `scontrol show config`."""
    found = {}
    for line in run_slurm(["scontrol", "show", "config"]).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key.strip()] = value.strip()
    return found


def needs_account() -> bool:
    """Whether this cluster runs jobs only for accounts in its database (`AccountingStorageEnforce`)."""
    value = configuration().get("AccountingStorageEnforce", "")
    return "associations" in value or "limits" in value or "qos" in value


def accounts() -> list[str]:
    """Accounts that this user may charge, the default first. Needs the accounting database."""
    columns = "format=defaultaccount,account"
    listed = run_slurm(
        ["sacctmgr", "--noheader", "--parsable2", "show", "user", getpass.getuser(), "withassoc", columns]
    )
    rows = [line.split("|") for line in listed.splitlines() if "|" in line]
    found = {account for _, account in rows if account}
    default = rows[0][0] if rows else ""
    return sorted(found, key=lambda account: (account != default, account))


@dataclass(frozen=True)
class Ended:
    """How a job ended, according to the accounting database."""

    id: str
    state: str
    exit_code: str
    elapsed: str
    node_list: str


def parse_accounting(text: str) -> dict[str, Ended]:
    """Jobs by id from `sacct --parsable2 --noheader --allocations --format=JobID,State,ExitCode,Elapsed,NodeList`."""
    found = {}
    for line in text.splitlines():
        number, state, code, elapsed, nodes = line.split("|")
        found[number] = Ended(number, state.split()[0], code, elapsed, nodes)
    return found


def ended_jobs(numbers: Sequence[int]) -> dict[str, Ended]:
    """What accounting knows about jobs; empty if it is off."""
    if not numbers or shutil.which("sacct") is None:
        return {}
    try:
        listed = run_slurm(
            [
                *("sacct", "--parsable2", "--noheader", "--allocations"),
                "--format=JobID,State,ExitCode,Elapsed,NodeList",
                f"--jobs={','.join(map(str, numbers))}",
            ]
        )
    except SlurmError as error:
        if "accounting storage is disabled" in str(error):
            return {}
        raise
    return parse_accounting(listed)
