"""Disk space for what a chain writes: what is free, and what the user's quotas leave.

`statvfs` includes quotas where the file system reports them that way (XFS and Lustre projects, most NFS
servers); on Lustre and GPFS (Storage Scale) the quotas of user, group, and project or fileset are queried as well.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from emma.base.errors import RecipeError
from emma.recipes.schema import Recipe
from emma.slurm.stages import Stage
from emma.tools.arithmetic.cost import Assumptions, checkpoint_cost
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Room", "check_room", "gpfs_room", "lustre_room", "parse_gpfs_quota", "parse_quota", "room"]

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
    own = Room(status.f_bavail * status.f_frsize, files, "its file system")
    return [own, *lustre_room(folder), *gpfs_room(folder)]


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
    return _said(["lfs", *arguments])


def _said(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


_GPFS_KINDS = {"USR": "user", "GRP": "group", "FILESET": "fileset"}
_GPFS_COMMANDS = "/usr/lpp/mmfs/bin"


def parse_gpfs_quota(text: str) -> list[Room]:
    """What `mmlsquota -Y` says: colon-separated rows below a header that names their columns. Blocks are KiB; a limit
    of 0 means none."""
    columns: list[str] = []
    found = []
    for line in text.splitlines():
        values = line.split(":")
        if values[0] != "mmlsquota" or len(values) < 4:
            continue
        if values[2] == "HEADER":
            columns = values
            continue
        row = dict(zip(columns, values, strict=False))
        kib = _left([row.get(f"block{part}", "") for part in ("Usage", "Quota", "Limit")])
        files = _left([row.get(f"files{part}", "") for part in ("Usage", "Quota", "Limit")])
        kind = _GPFS_KINDS.get(row.get("quotaType", ""), "quota")
        # Names escape `:` and `%` as %3A and %25.
        name = urllib.parse.unquote(row.get("name") or row.get("filesetname") or "")
        found.append(Room(None if kib is None else kib * 1024, files, f"the quota of {kind} {name}".rstrip()))
    return found


def gpfs_room(folder: Path) -> list[Room]:
    """What the quotas of GPFS leave; empty on other file systems."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return []
    device = gpfs_device(folder, mounts.read_text(encoding="utf-8"))
    program = shutil.which("mmlsquota") or shutil.which("mmlsquota", path=_GPFS_COMMANDS)
    if device is None or program is None:
        return []
    import grp  # here, since not every system has it

    group = grp.getgrgid(folder.stat().st_gid).gr_name
    owners = [["-u", getpass.getuser()], ["-g", group]]
    attributes = shutil.which("mmlsattr") or shutil.which("mmlsattr", path=_GPFS_COMMANDS)
    if attributes is not None:
        said = _said([attributes, "-L", str(folder)]) or ""
        if (match := re.search(r"^fileset name:\s*(\S+)", said, re.MULTILINE)) is not None:
            owners.append(["-j", match[1]])
    answers = [_said([program, "-Y", *owner, device]) for owner in owners]
    return [limit for said in answers if said is not None for limit in parse_gpfs_quota(said)]


def gpfs_device(folder: Path, mounts: str) -> str | None:
    """Name of the GPFS file system that holds a folder, None on others; `mounts` as in /proc/mounts."""
    best, device = Path(), None
    for line in mounts.splitlines():
        source, place, kind = line.split()[:3]
        at = Path(place.encode().decode("unicode_escape"))
        if folder.resolve().is_relative_to(at) and len(at.parts) >= len(best.parts):
            best, device = at, source.removeprefix("/dev/") if kind == "gpfs" else None
    return device


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
