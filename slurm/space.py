"""Disk space for what a chain writes: what is free, and what the user's quotas leave.

`statvfs` includes quotas where the file system reports them that way (XFS and Lustre projects, most NFS
servers); on Lustre the user, group, and project quotas are queried as well.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emma.base.errors import RecipeError
from emma.recipes.schema import Recipe
from emma.slurm.stages import Stage
from emma.tools.arithmetic.cost import Assumptions, checkpoint_cost
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Room", "check_room", "lustre_room", "parse_quota", "room"]

_GIB = 2**30


@dataclass(frozen=True)
class Room:
    """What may still be written.

    Attributes:
        bytes, files: how much; None if unlimited.
        limit: what imposes the limit, for messages.
    """

    bytes: int | None
    files: int | None
    limit: str


def parse_quota(text: str) -> tuple[int | None, int | None]:
    """Bytes and files left according to `lfs quota -q`: a path, then KiB used, soft limit, hard limit, and
    grace, then the same for files. A star marks usage above the soft limit; a limit of 0 means none."""
    columns = text.replace("\n", " ").split()
    if len(columns) < 9:
        return None, None
    kib, files = columns[1:5], columns[5:9]
    left = [_left(part) for part in (kib, files)]
    return (None if left[0] is None else left[0] * 1024), left[1]


def _left(columns: list[str]) -> int | None:
    used, soft, hard = (int(re.sub(r"\D", "", column) or 0) for column in columns[:3])
    limits = [limit for limit in (soft, hard) if limit]
    # Above the soft limit, writes fail once the grace period ends.
    return max(0, min(limits) - used) if limits else None


def room(folder: Path) -> list[Room]:
    """Limits on what this user may write below an existing folder."""
    status = os.statvfs(folder)
    files = status.f_favail if status.f_files else None
    return [Room(status.f_bavail * status.f_frsize, files, "its file system"), *lustre_room(folder)]


def lustre_room(folder: Path) -> list[Room]:
    """What Lustre's quotas leave; empty on other file systems."""
    if shutil.which("lfs") is None or _lfs("project", "-d", str(folder)) is None:
        return []
    import grp  # here, since not every system has it

    owners = [("-u", getpass.getuser(), "user"), ("-g", grp.getgrgid(folder.stat().st_gid).gr_name, "group")]
    project = (_lfs("project", "-d", str(folder)) or "0").split()[0]
    if project != "0":
        owners.append(("-p", project, "project"))
    found = []
    for option, name, kind in owners:
        said = _lfs("quota", "-q", option, name, str(folder))
        if said is not None:
            found.append(Room(*parse_quota(said), f"the quota of {kind} {name}"))
    return found


def _lfs(*arguments: str) -> str | None:
    """Output of `lfs`; None if the folder is not on Lustre or has no such quota."""
    done = subprocess.run(["lfs", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def check_room(recipe: Recipe, stages: list[Stage], runs: int = 1) -> None:
    """There must be room for the checkpoints of a run that is to be trained (or of `runs` such runs), and for
    one more file in every other output folder.

    Raises:
        RecipeError: there is not enough.
    """
    trains = any(stage.name == "train" for stage in stages)
    cost = checkpoint_cost(recipe, None, Assumptions())
    checkpoints = RunFolder(recipe.run_folder).checkpoints
    there = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file())
    wanted = max(1, round(runs * cost.disk_gib * _GIB) - there) if trains else 1
    for key, path, need in (
        ("runs", recipe.paths.runs, wanted),
        ("store", recipe.paths.store, 1),
        ("mix", recipe.paths.mix, 1),
    ):
        folder = Path(path).absolute()
        while not folder.exists():
            folder = folder.parent
        for limit in room(folder):
            if limit.files == 0:
                raise RecipeError(
                    f"paths.{key}",
                    f"{folder}: {limit.limit} allows no more files",
                    "remove some, or choose another file system",
                )
            if limit.bytes is not None and limit.bytes < need:
                what = (
                    f"{runs * (cost.kept + 1)} checkpoints need {need / _GIB:,.0f} GiB more"
                    if need > 1
                    else "it is full"
                )
                raise RecipeError(
                    f"paths.{key}",
                    f"{folder}: {limit.limit} leaves {limit.bytes / _GIB:,.0f} GiB, {what}",
                    "free some, keep fewer checkpoints (checkpoint.keep), or choose another file system",
                )
