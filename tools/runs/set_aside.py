"""Checkpoints that cannot be used: set aside with the reason, so that the one before is tried. Needs no torch.

A checkpoint is set aside by renaming it to `iter_NNNNNNN.damaged-K`, a name that nothing takes for a checkpoint, with
the reason in its `damaged.json`. It is never deleted here: a person may restore its files and rename it back.
`checkpoints.jsonl` in the run folder keeps what happened to the run's checkpoints: `saved`, `set aside`, `put back`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.base.manifest import now
from emma.tools.runs.checkpoints import (
    COMPLETE_MARK,
    REASON_FILE,
    LoadPlan,
    checkpoint_folder,
    complete_steps,
    incomplete_steps,
)
from emma.tools.runs.checksums import PAUSES
from emma.tools.runs.fence import Fence
from emma.tools.runs.metrics import read_lines

__all__ = [
    "Damaged",
    "LoadFailure",
    "SetAside",
    "events",
    "once_complete",
    "record_event",
    "set_aside",
    "set_incomplete_aside",
    "set_asides",
    "settle",
]

_NAME = re.compile(r"iter_(\d{7,})\.damaged-(\d+)")
_FAILURES = "load-failed-*.json"


class Damaged(Exception):  # noqa: N818  not an error: it asks the launcher for another launch
    """A checkpoint of the run itself is damaged; the launch ends, and the next one begins from the one before."""

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"checkpoint iter_{step:07d}: {reason}")


@dataclass(frozen=True)
class SetAside:
    """A checkpoint that was set aside.

    Attributes:
        step: its step.
        reason: why it cannot be used.
        kind: `files` (they are not what was written) or `load` (Megatron could not load it).
        back_to: step of the checkpoint before it; None if there was none.
        steps_lost: steps between the two, which are trained again.
        launch: number of the launch that found it.
        time: when.
    """

    step: int
    reason: str
    kind: str
    back_to: int | None
    steps_lost: int
    launch: int
    time: str

    def __str__(self) -> str:
        follows = (
            "there is no checkpoint before it"
            if self.back_to is None
            else f"training goes back to step {self.back_to}, and {self.steps_lost} steps are trained again"
        )
        return f"checkpoint iter_{self.step:07d} is set aside: {self.reason}; {follows}"


def record_event(ledger: Path, fence: Fence, event: str, **facts: Any) -> None:
    """Appends what happened to a checkpoint."""
    fence.append(ledger, orjson.dumps({"event": event, "time": now(), **facts}))


def events(ledger: Path) -> list[dict[str, Any]]:
    """What happened to the checkpoints of a run, oldest first."""
    return read_lines(ledger)


def set_aside(
    checkpoints: Path,
    ledger: Path,
    step: int,
    reason: str,
    kind: str,
    fence: Fence,
    launch: int | None = None,
) -> SetAside:
    """Renames a checkpoint of the run. Killed anywhere in between, the next launch ends the move or finds the damage
    again.

    Args:
        checkpoints: folder of the run's checkpoints.
        ledger: its `checkpoints.jsonl`.
        step: which one.
        reason, kind: see `SetAside`.
        fence: of the launch that does it.
        launch: number of the launch that found the damage, if it was another.
    """
    earlier = [known for known in complete_steps(checkpoints) if known < step]
    back_to = earlier[-1] if earlier else None
    record = SetAside(step, reason, kind, back_to, step - (back_to or 0), launch or fence.number, now())
    folder = checkpoint_folder(checkpoints, step)
    number = 1 + max((int(name[2]) for _, name in _damaged(checkpoints) if int(name[1]) == step), default=0)
    aside = folder.with_name(f"{folder.name}.damaged-{number}")
    moving = fence.take(folder, aside.name)
    write_json(moving / REASON_FILE, asdict(record))
    fence.give(moving, aside)
    record_event(ledger, fence, "set aside", **asdict(record), folder=aside.name)
    return record


def _damaged(checkpoints: Path) -> list[tuple[Path, re.Match[str]]]:
    found = ((path, _NAME.fullmatch(path.name)) for path in checkpoints.glob("iter_*.damaged-*"))
    return [(path, name) for path, name in found if name is not None]


def set_asides(checkpoints: Path) -> dict[Path, SetAside]:
    """The folders that were set aside and are still there, with their records, latest last."""
    read = {path: _record(path, int(name[1])) for path, name in _damaged(checkpoints)}
    return dict(sorted(read.items(), key=lambda item: item[1].launch))


def _record(folder: Path, step: int) -> SetAside:
    """What `damaged.json` says; it may be as damaged as the rest, or the folder renamed by hand."""
    try:
        return SetAside(**read_json(folder / REASON_FILE))
    except (OSError, TypeError, UserError):
        return SetAside(step, f"{REASON_FILE} is not readable", "files", None, 0, 0, "")


def set_incomplete_aside(checkpoints: Path, ledger: Path, fence: Fence) -> None:
    """Sets aside what was complete once, is not any more, and is later than the latest complete checkpoint, where there
    is one to go back to; a save that never finished is passed over. Says both on standard error."""
    complete = complete_steps(checkpoints)
    broken = {
        step: reason
        for step, reason in incomplete_steps(checkpoints).items()
        if step > max(complete, default=0)
    }
    lost = once_complete(checkpoints, ledger) if broken else {}
    if complete and any(checkpoint_folder(checkpoints, step).name in lost for step in broken):
        # On a network file system a file may be seen late.
        time.sleep(PAUSES[0])
        broken = {step: reason for step, reason in incomplete_steps(checkpoints).items() if step in broken}
    for step, reason in broken.items():
        name = checkpoint_folder(checkpoints, step).name
        if complete and name in lost:
            print(set_aside(checkpoints, ledger, step, reason, "files", fence), file=sys.stderr, flush=True)
        else:
            print(f"passing over checkpoint {name}: {reason}", file=sys.stderr, flush=True)


def once_complete(checkpoints: Path, ledger: Path) -> dict[str, str]:
    """Checkpoints that this run had and cannot use now, each with the reason; empty if it never completed one."""
    saved = set[int]()
    for event in events(ledger):
        (saved.discard if event["event"] == "set aside" else saved.add)(event["step"])
    lost = {f"iter_{step:07d}": "is gone" for step in sorted(saved)[-1:]}
    for step, reason in incomplete_steps(checkpoints).items():
        folder = checkpoint_folder(checkpoints, step)
        if step in saved or (folder / COMPLETE_MARK).exists():
            lost[folder.name] = reason
    return lost | {path.name: record.reason for path, record in set_asides(checkpoints).items()}


@dataclass(frozen=True)
class LoadFailure:
    """A rank on which Megatron could not load the checkpoint.

    Attributes:
        step: the checkpoint; None for step 0 of an import.
        rank: the rank.
        host: its node.
        kind: `content` (the checkpoint or what is asked of it), `read` (a read error that may pass), `machine` (no
            memory, a device that fails, no permission) or `peer` (another rank or the network failed).
        error: type and message of the exception.
    """

    step: int | None
    rank: int
    host: str
    kind: str
    error: str

    def write(self, logs: Path) -> None:
        """Leaves the failure among the launch's logs, for the launcher."""
        write_json(logs / f"load-failed-{self.rank}.json", asdict(self))

    @staticmethod
    def of_launch(logs: Path) -> LoadFailure | None:
        """The failure that says most about why a launch ended; None where it says nothing about the checkpoint."""
        found = [LoadFailure(**read_json(path)) for path in sorted(logs.glob(_FAILURES))]
        if any(failure.kind == "machine" for failure in found):
            return None
        telling = sorted((f for f in found if f.kind in ("content", "read")), key=lambda f: (f.kind, f.rank))
        return telling[0] if telling else None

    def like(self, reason: str) -> bool:
        """Whether another failure's reason is the same, but for numbers and paths."""
        return _plain(str(self)) == _plain(reason)

    def __str__(self) -> str:
        return f"it could not be loaded on rank {self.rank} ({self.host}): {self.error}"


def _plain(text: str) -> str:
    return re.sub(r"\d+|\S*/\S*|\([^()]*\)", "", text)


def settle(
    checkpoints: Path, ledger: Path, logs: Path, launch: int, load: LoadPlan, fence: Fence
) -> str | None:
    """Decides what to do about a launch that ended because Megatron could not load its checkpoint.

    A read error is tried once more with the same checkpoint. After any other, or a second one, the checkpoint is set
    aside if there is one before it. If that one fails in the same way, the cause is not in the checkpoints: those that
    were set aside for it are put back.

    Args:
        checkpoints: folder of the run's checkpoints.
        ledger: its `checkpoints.jsonl`.
        logs: folder of that launch's logs.
        launch: its number.
        load: what it began from, a checkpoint of this run.
        fence: of the launch that decides.

    Returns:
        What was decided, in words; None if nothing was to decide.

    Raises:
        CheckFailedError: the run cannot go on; nothing is set aside.
    """
    failure, step = LoadFailure.of_launch(logs), load.step
    if failure is None or step is None:
        return None
    folder = checkpoint_folder(checkpoints, step)
    if not folder.is_dir():
        return None
    before = LoadFailure.of_launch(logs.with_name(f"launch-{launch - 1:04d}"))
    if failure.kind == "read" and (before is None or before.step != step):
        return f"checkpoint {folder.name}: {failure}; it is tried once more"
    alike = _alike(set_asides(checkpoints), step, failure)
    if alike:
        for path, record in alike.items():
            _put_back(checkpoints, ledger, path, record, fence)
        names = ", ".join(
            [*(checkpoint_folder(checkpoints, r.step).name for r in alike.values()), folder.name]
        )
        raise CheckFailedError(
            f"{checkpoints}: {names} fail to load in the same way, so the cause is not in the checkpoints; all of them "
            f"are kept. Fix: look at {logs}, correct the cause (layout, versions, recipe) and start again. "
            f"The last: {failure}"
        )
    if not any(known < step for known in complete_steps(checkpoints)):
        raise CheckFailedError(
            f"{folder}: {failure}. There is no checkpoint before it, and it is kept. Fix: look at {logs} and correct "
            "the cause, or restore the checkpoint"
        )
    return str(set_aside(checkpoints, ledger, step, str(failure), "load", fence, launch))


def _alike(known: Mapping[Path, SetAside], step: int, failure: LoadFailure) -> dict[Path, SetAside]:
    """Those set aside directly before `step` was tried, one after the other, because they failed like it."""
    alike: dict[Path, SetAside] = {}
    for path, record in reversed(list(known.items())):
        if record.kind != "load" or record.back_to != step or not failure.like(record.reason):
            break
        alike[path], step = record, record.step
    return alike


def _put_back(checkpoints: Path, ledger: Path, path: Path, record: SetAside, fence: Fence) -> None:
    folder = checkpoint_folder(checkpoints, record.step)
    if folder.exists():
        return
    moving = fence.take(path, folder.name)
    (moving / REASON_FILE).unlink(missing_ok=True)
    fence.give(moving, folder)
    record_event(ledger, fence, "put back", step=record.step, folder=path.name)
