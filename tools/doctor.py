"""What this machine has for training: processors, memory, GPUs, libraries, Slurm, and the patches with their
reasons.

Everything is probed from outside (files, metadata, short subprocesses with a time-out), so that a broken
driver, or a library that crashes on import, becomes a line of the report instead of ending it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from emma.base.extras import install_command
from emma.base.file_systems import FileSystem, examine_file_system
from emma.base.processes import available_cores, memory
from emma.base.sizes import size_text
from emma.megatron_patches import PatchError, PatchStatus, status
from emma.megatron_patches.registry import patches

__all__ = ["Gpu", "Report", "examine", "find_gpus", "format_report"]

PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "transformer-engine",
    "apex",
    "flash-attn",
    "triton",
    "numpy",
    "tokenizers",
    "pyarrow",
    "lm-eval",
)
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sinfo", "scontrol")
GPU_FIELDS = ("name", "memory.total", "driver_version", "compute_cap")
# Run in a process of its own: importing torch can fail in ways that no except clause catches.
ASK_TORCH = """
import json, torch
nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
print(json.dumps({
    "version": torch.__version__, "cuda_build": torch.version.cuda, "cuda_available": torch.cuda.is_available(),
    "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    "gloo": torch.distributed.is_gloo_available(), "nccl": ".".join(map(str, nccl)) if nccl else None,
}))
"""
TORCH_SECONDS = 120.0
COMMAND_SECONDS = 20.0


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver describes it; memory in GiB."""

    name: str
    memory_gib: float
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class Report:
    """All that `emma doctor` reports. `trains_on` is "gpu", "cpu" or None; `problems` name their fix."""

    python: str
    system: str
    cores: int
    memory_gib: float
    memory_available_gib: float
    disk_free_gib: float
    shared_memory_gib: float
    limits: dict[str, int | None]
    file_systems: list[FileSystem]
    packages: dict[str, str | None]
    torch: dict[str, Any]
    gpus: list[Gpu]
    slurm: dict[str, str | None]
    patches: list[PatchStatus]
    trains_on: str | None
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        return asdict(self)


LIMITS = {
    "open files": ("RLIMIT_NOFILE", 4096, "ulimit -n 65536"),
    "processes": ("RLIMIT_NPROC", 1024, "ulimit -u unlimited"),
    "file size": ("RLIMIT_FSIZE", 1 << 40, "ulimit -f unlimited"),
    "address space": ("RLIMIT_AS", 1 << 40, "ulimit -v unlimited"),
}
"""Limits of a process: their name, the least that large runs need, and how to raise them."""


def examine(folder: Path | None = None, others: Sequence[Path] = ()) -> Report:
    """Examines this machine; free disk space is measured in `folder` (default: the current one), and what file systems
    can do in it and in `others`."""
    problems: list[str] = []
    packages = {name: _version(name) for name in PACKAGES}
    torch = _ask_torch(problems) if packages["torch"] else {}
    gpus = find_gpus(problems)
    patch_statuses, unpatchable = _patches()
    problems += unpatchable
    trains_on = _verdict(packages, torch, gpus, problems)
    total, available = _memory_gib()
    file_systems = [examine_file_system(each) for each in dict.fromkeys([folder or Path.cwd(), *others])]
    problems += [f"{each.folder}: {fault}" for each in file_systems for fault in each.faults]
    limits = _limits(problems)
    return Report(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=_cores(),
        memory_gib=total,
        memory_available_gib=available,
        disk_free_gib=_gib(shutil.disk_usage(folder or Path.cwd()).free),
        shared_memory_gib=_gib(shutil.disk_usage("/dev/shm").total) if Path("/dev/shm").is_dir() else 0.0,
        limits=limits,
        file_systems=file_systems,
        packages=packages,
        torch=torch,
        gpus=gpus,
        slurm=_slurm(),
        patches=patch_statuses,
        trains_on=None if unpatchable else trains_on,
        problems=problems,
    )


def _limits(problems: list[str]) -> dict[str, int | None]:
    """Returns each limit of this process, None for unlimited, and adds those that are too low to `problems`."""
    try:
        import resource
    except ImportError:  # not every system has it
        return {}
    found: dict[str, int | None] = {}
    for name, (constant, least, command) in LIMITS.items():
        if not hasattr(resource, constant):
            continue
        limit = resource.getrlimit(getattr(resource, constant))[0]
        found[name] = None if limit == resource.RLIM_INFINITY else limit
        if limit != resource.RLIM_INFINITY and limit < least:
            problems.append(f"the limit on {name} is {limit:,}; large runs need {least:,}. Fix: `{command}`")
    return found


def _gib(size: float) -> float:
    return round(size / 2**30, 1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _run(command: list[str], seconds: float = COMMAND_SECONDS) -> tuple[str | None, str]:
    """Returns stdout (None on failure) and, on failure, why."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if done.returncode == 0:
        return done.stdout, ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return None, f"exit code {done.returncode}: {lines[-1] if lines else 'no output'}"


def _ask_torch(problems: list[str]) -> dict[str, Any]:
    text, why = _run([sys.executable, "-c", ASK_TORCH], TORCH_SECONDS)
    if text is None:
        problems.append(f"torch is installed but cannot be imported ({why}). Fix: reinstall torch")
        return {}
    answer: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return answer


def find_gpus(problems: list[str]) -> list[Gpu]:
    if shutil.which("nvidia-smi") is None:
        return []
    text, why = _run(["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"])
    if text is None:
        problems.append(f"nvidia-smi fails ({why}). Fix: check the NVIDIA driver")
        return []
    gpus = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(GPU_FIELDS):
            name, memory, driver, capability = values
            mebibytes = float(memory) if memory.replace(".", "").isdigit() else 0.0
            gpus.append(Gpu(name, round(mebibytes / 1024, 1), driver, capability))
    return gpus


def _cores() -> int:
    """Returns the cores this process may use: its affinity, limited by the container's quota."""
    cores = available_cores()
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().partition(" ")
        if limit.isdigit():
            cores = min(cores, max(1, round(int(limit) / int(period))))
    return cores


def _memory_gib() -> tuple[float, float]:
    """Returns total and available memory, limited by the container's."""
    total, available = memory()
    return _gib(total), _gib(available)


def _slurm() -> dict[str, str | None]:
    """Returns each Slurm command's path or None, the version or why it is unknown, and the current job."""
    found: dict[str, str | None] = {name: shutil.which(name) for name in SLURM_COMMANDS}
    version, fault = _run(["sbatch", "--version"]) if found["sbatch"] else (None, None)
    return found | {
        "version": version.strip() if version else None,
        "fault": fault or None,
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _describe_slurm(slurm: dict[str, str | None]) -> str:
    commands = ", ".join(name for name in SLURM_COMMANDS if slurm[name])
    if not commands:
        return "not installed"
    return (
        f"{slurm['version']}: {commands}"
        if slurm["version"]
        else f"not usable ({slurm['fault']}): {commands}"
    )


def _patches() -> tuple[list[PatchStatus], list[str]]:
    """Returns the patches' status, and a sentence for each that is needed here but refuses these versions."""
    statuses, refusals = list(status()), []
    for patch, its_status in zip(patches(), statuses, strict=True):
        if its_status.on and all(_version(distribution) for distribution in patch.versions):
            try:
                patch.check_versions()
            except PatchError as error:
                refusals.append(str(error))
    return statuses, refusals


def _verdict(
    packages: dict[str, str | None], torch: dict[str, Any], gpus: list[Gpu], problems: list[str]
) -> str | None:
    """Returns what training can run on, and adds to `problems` what prevents it."""
    missing = [name for name in ("torch", "megatron-core") if packages[name] is None]
    problems += [f"{name} is not installed. Fix: {install_command(name, 'train')}" for name in missing]
    if gpus and torch and not torch["cuda_available"]:
        problems.append(
            f"the driver lists {len(gpus)} GPU(s) and torch {torch['version']} (CUDA {torch['cuda_build']}) uses none. "
            "Fix: install a torch build that fits the driver, or check CUDA_VISIBLE_DEVICES"
        )
    if torch.get("gpus") and packages["transformer-engine"] is None:
        problems.append(
            "Transformer Engine is missing: training falls back to the slower local implementation. "
            f"Fix: {install_command('transformer-engine')}"
        )
    if torch.get("gpus") and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        problems.append(
            "no C compiler: Triton needs one for the functions that torch compiles, and training ends without it. "
            "Fix: install gcc, name one in CC, or set TORCH_COMPILE_DISABLE=1"
        )
    if missing or not torch:
        return None
    if torch["cuda_available"]:
        return "gpu"
    if not torch["gloo"]:
        problems.append(
            "this torch build has no gloo, which training on the CPU needs. Fix: install another build"
        )
        return None
    return "cpu"


def _limit_text(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _file_system_line(found: FileSystem) -> str:
    files = "" if found.free_files is None else f" and {found.free_files:,} files"
    can = "renames, locks, links and syncs" if not found.faults else "NOT usable as it is (see below)"
    return f"file system  {found.folder}: {found.kind or 'unknown'}, {size_text(found.free_bytes)}{files} free, {can}"


def format_report(report: Report) -> str:
    """Returns the report as text for a terminal."""
    lines = [
        f"system       {report.system}, Python {report.python}",
        f"cores        {report.cores}",
        f"memory       {report.memory_gib} GiB ({report.memory_available_gib} GiB available)",
        f"disk         {report.disk_free_gib} GiB free here, /dev/shm {report.shared_memory_gib} GiB",
        "limits       " + ", ".join(f"{_limit_text(limit)} {name}" for name, limit in report.limits.items()),
        *(_file_system_line(each) for each in report.file_systems),
        "packages     "
        + ", ".join(f"{name} {version}" for name, version in report.packages.items() if version),
        "not there    "
        + (", ".join(name for name, version in report.packages.items() if not version) or "nothing"),
    ]
    if report.torch:
        nccl = report.torch["nccl"] or "none"
        lines.append(
            f"torch        built for CUDA {report.torch['cuda_build']}, NCCL {nccl}, sees {report.torch['gpus']} GPU(s)"
        )
    for gpu in report.gpus:
        lines.append(
            f"GPU          {gpu.name}, {gpu.memory_gib} GiB, compute capability {gpu.compute_capability}, driver {gpu.driver}"
        )
    if not report.gpus:
        lines.append("GPU          none")
    lines.append("Slurm        " + _describe_slurm(report.slurm))
    lines += ["", "patches"]
    for patch in report.patches:
        lines.append(f"  {'on ' if patch.on else 'off'}  {patch.name}: {patch.why}")
        lines.append(f"       {patch.reason}")
        lines.append(f"       {patch.upstream}")
    if report.problems:
        lines += ["", "problems", *(f"  - {problem}" for problem in report.problems)]
    verdict = {"gpu": "ready to train on the GPU", "cpu": "ready to train on the CPU (no GPU here)"}
    lines += ["", verdict.get(report.trains_on or "", "cannot train here")]
    return "\n".join(lines)
