"""What a run was produced with, for `environment.json`: versions, source, patches, machine, Slurm job. No torch."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from emma import megatron_patches
from emma.base.manifest import now, package_versions
from emma.recipes.schema import Recipe

__all__ = ["environment", "source_commit"]


def environment(recipe: Recipe) -> dict[str, Any]:
    """The facts of this process's machine and installation."""
    package = (
        Path(__file__).parents[2].resolve()
    )  # of emma/tools/runs/environment.py, where emma/tools may be a link
    return {
        "written": now(),
        "recipe_sha256": recipe.sha256,
        "versions": package_versions(),
        "package": str(package),
        "commit": source_commit(package),
        "patches": [status.as_dict() for status in megatron_patches.status()],
        "hardware": {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "gpus": _gpus(),
            "cluster": recipe.cluster.name,
            "ranks": recipe.cluster.world_size,
        },
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST")},
        "command": sys.argv,
    }


def source_commit(package: Path) -> str | None:
    """Commit of the checkout that a package's folder belongs to, with `-dirty` where tracked files differ
    from it.

    None if the package is installed from a wheel, even inside a checkout of something else: git must track
    the package, in a folder of its name at the top of the checkout.
    """
    tracked = _output("git", "-C", str(package), "ls-files", "--full-name", "--error-unmatch", "__init__.py")
    if tracked != f"{package.name}/__init__.py":
        return None
    return _output("git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU that the driver reports; empty without a driver."""
    fields = "name,memory.total,driver_version"
    return (_output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader") or "").splitlines()


def _output(*command: str) -> str | None:
    """What a command prints; None where it fails or is not installed."""
    # In a git hook these variables name the repository of the hook, whatever the folder.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    # PermissionError: PATH has a folder that this user may not enter, as a login shell's of another user may.
    except (FileNotFoundError, PermissionError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
