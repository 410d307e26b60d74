"""The checkpoints of a run on disk: which are complete, which are kept. Needs neither torch nor Megatron.

`complete.json` lists each file with its size and checksum, and ends with a checksum of itself. What looks at
checkpoints often (resuming, retention, exports) compares sizes; `integrity.py` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import fsync_path, read_json, write_json
from emma.tools.runs.checksums import ListedFile, checksum_of, checksums

__all__ = [
    "COMPLETE_MARK",
    "REASON_FILE",
    "TRACKER",
    "LoadPlan",
    "StartPoint",
    "checkpoint_folder",
    "checkpoint_files",
    "checkpoint_steps",
    "complete_steps",
    "incomplete_steps",
    "listed_files",
    "mark_complete",
    "prune",
    "resolve_start",
    "tracked_step",
]

COMPLETE_MARK = "complete.json"
REASON_FILE = "damaged.json"
"""Says in a checkpoint that was set aside why (`set_aside.py`)."""
TRACKER = "latest_checkpointed_iteration.txt"
_SELF = "checksum"
_NAME = re.compile(r"iter_(\d{7,})")


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """`checkpoints/iter_NNNNNNN`."""
    return checkpoints / f"iter_{step:07d}"


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Steps that have a folder `iter_NNNNNNN`, complete or not, ascending."""
    names = (_NAME.fullmatch(path.name) for path in checkpoints.iterdir()) if checkpoints.is_dir() else ()
    return sorted(int(name[1]) for name in names if name)


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps whose checkpoint carries a completion mark that matches its files, ascending."""
    return [
        step for step in checkpoint_steps(checkpoints) if _fault(checkpoint_folder(checkpoints, step)) is None
    ]


def incomplete_steps(checkpoints: Path) -> dict[int, str]:
    """Steps whose checkpoint must not be used, with the reason."""
    faults = {step: _fault(checkpoint_folder(checkpoints, step)) for step in checkpoint_steps(checkpoints)}
    return {step: fault for step, fault in faults.items() if fault is not None}


def checkpoint_files(folder: Path) -> list[str]:
    """Names of all files of a checkpoint, relative to its folder, without the marks about it."""
    marks = (COMPLETE_MARK, REASON_FILE)
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in marks)
    return sorted(str(path.relative_to(folder)) for path in paths)


def listed_files(folder: Path) -> dict[str, ListedFile]:
    """The files that a checkpoint's completion mark lists.

    Raises:
        UserError: the mark is missing or damaged; the message is the reason alone, without the folder.
    """
    mark = folder / COMPLETE_MARK
    if not mark.is_file():
        raise UserError(f"{mark.name} is missing: the save did not finish")
    try:
        value = read_json(mark)
        files = dict(value["files"])
        if all(type(size) is int for size in files.values()):
            return {name: ListedFile(size, None) for name, size in files.items()}
        listed = {name: ListedFile(**entry) for name, entry in files.items()}
        # A bit that flips inside the mark must not change what is expected of the files.
        sound = value.pop(_SELF) == _own_checksum(value)
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{mark.name} is damaged")
    return listed


def _own_checksum(value: Mapping[str, Any]) -> str:
    return checksum_of(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _fault(folder: Path) -> str | None:
    try:
        listed = listed_files(folder)
    except UserError as error:
        return str(error)
    for name, file in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != file.bytes:
            return f"{name} has {path.stat().st_size} bytes, but {file.bytes} were written"
    return None


def mark_complete(folder: Path, known: Mapping[str, ListedFile] | None = None, **facts: object) -> None:
    """Writes the completion mark of a checkpoint: size and checksum of each of its files, and `facts` (step,
    tokens, ...).

    Call it when all ranks have finished writing.

    Args:
        folder: the checkpoint.
        known: files whose checksum was taken already, while or right after they were written. The others are
            read here.
        facts: anything that JSON can hold.
    """
    # Megatron leaves its small files to the kernel: a mark that outlived them would name an empty metadata.json.
    for name in checkpoint_files(folder):
        fsync_path(folder / name)
    fsync_path(folder)
    files = dict(known or {})
    files |= checksums(folder, [name for name in checkpoint_files(folder) if name not in files])
    value = {**facts, "files": {name: asdict(files[name]) for name in sorted(files)}}
    write_json(folder / COMPLETE_MARK, {**value, _SELF: _own_checksum(value)})


def tracked_step(checkpoints: Path) -> int | None:
    """Step in Megatron's tracker file, written once a save has ended on all ranks; None if there is none."""
    tracker = checkpoints / TRACKER
    text = tracker.read_bytes().strip() if tracker.is_file() else b""
    return int(text) if text.isdigit() else None


def prune(
    checkpoints: Path, keep: int | None, keep_every: int | None, delete: Callable[[Path], None]
) -> list[int]:
    """Deletes complete checkpoints that the recipe does not keep, and incomplete ones older than the latest
    complete one.

    Args:
        checkpoints: folder of the run's checkpoints.
        keep: the last so many stay; None: all.
        keep_every: those of steps that it divides stay too.
        delete: deletes a folder, never leaving a part of it under its name (`Fence.delete`).

    Returns:
        The steps deleted.
    """
    if keep is None:
        return []
    complete = complete_steps(checkpoints)
    if not complete:
        return []
    stay = set(complete[-keep:]) | {step for step in complete if keep_every and step % keep_every == 0}
    deleted = [step for step in checkpoint_steps(checkpoints) if step not in stay and step <= complete[-1]]
    for step in deleted:
        delete(checkpoint_folder(checkpoints, step))
    return deleted


@dataclass(frozen=True)
class LoadPlan:
    """What a launch starts from, decided once for all ranks.

    `mode` is `scratch`, `weights`, `phase` or `resume`; `folder` holds `iter_NNNNNNN/` and the tracker file; `step`
    chooses one of them (None: the tracker's).
    """

    mode: str
    folder: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class StartPoint:
    """A checkpoint to start from: `folder` holds the tracker file, `step` is one of its iterations."""

    folder: Path
    step: int


def resolve_start(checkpoint: str, step: int | None) -> StartPoint:
    """The checkpoint named by `start.checkpoint` and `start.step`.

    Args:
        checkpoint: folder of a Megatron checkpoint, or of a run (whose `checkpoints/` is then used).
        step: iteration, or None for the latest complete one.

    Raises:
        UserError: no such folder, no complete checkpoint in it, or no such step.
    """
    folder = Path(checkpoint)
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"start.checkpoint: {checkpoint} does not exist. Fix: import the base model with "
            f"`emma convert hf-to-megatron <folder of the Hugging Face model> {checkpoint}`, or name another folder"
        )
    complete, broken = complete_steps(folder), incomplete_steps(folder)
    if step is not None and step not in complete:
        reason = broken.get(step, f"it does not exist; complete are {complete or 'none'}")
        raise UserError(f"start.step: {step} of {folder} cannot be used: {reason}")
    if not complete:
        reasons = "; ".join(f"iter_{s:07d}: {why}" for s, why in broken.items())
        fix = "write it again" if reasons else "name a run, or the folder that holds its iter_NNNNNNN folders"
        raise UserError(
            f"start.checkpoint: no complete checkpoint in {folder} ({reasons or 'none at all'}). Fix: {fix}"
        )
    return StartPoint(folder, step if step is not None else complete[-1])
