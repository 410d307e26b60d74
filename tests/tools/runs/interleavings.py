"""Every interleaving of launches that run the real code of `tools/runs/fence.py`, on a real file system.

Each launch is a thread that stops at the code's named points (`fence.at`); a schedule says whose turn it is. Schedules
are run again and again from an empty folder, each time with another turn at some point, until no new state is found. A
state is what the folder holds and where each thread stands, with the values of all its local variables. A launch that
is never given another turn is one that was killed, or stopped for good, so this covers every crash as well.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from emma.base import files
from emma.tools.runs import claim, fence
from emma.tools.runs.checkpoints import checkpoint_folder, complete_steps, mark_complete, prune
from emma.tools.runs.fence import Claims, DisplacedError, Fence, InUseError

__all__ = ["ViolationError", "explore"]

_SECONDS = 60.0
_SEEN = {
    name: Path(module.__file__ or "") for name, module in (("fence", fence), ("here", sys.modules[__name__]))
}


class ViolationError(AssertionError):
    """A displaced launch changed the run, or two launches are the same; the message has the schedule."""


class _Abandoned(BaseException):
    """Ends the thread of a schedule that is over."""


_me = threading.local()


class _Actor:
    """A launch: takes the run, saves a checkpoint, logs, keeps the last checkpoint, ends."""

    def __init__(self, name: str, run: Path, saves: bool) -> None:
        self.name, self.run, self.saves = name, run, saves
        self.fence: Fence | None = None
        self.taken = self.over = False
        self.failure: BaseException | None = None
        self.point = "start"
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()
        self._wait()

    def _main(self) -> None:
        _me.actor = self
        try:
            self.stop_at("start")
            self.live()
        except (DisplacedError, InUseError):
            pass  # as it should
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  any other error of the code is a finding
            self.failure = error
        self.over = True
        self._back.release()

    def live(self) -> None:
        """A launch's life."""
        run = self.run
        self.fence = Claims(run).take(lambda other: "taken over by hand")
        self.taken = True
        begun = max(complete_steps(run / "checkpoints"), default=0)
        fence.at("decided")
        if self.saves:
            self._save(begun)
        self.fence.append(
            run / "metrics.jsonl", orjson.dumps({"step": begun + 1, "launch": self.fence.number})
        )
        if self.saves:
            prune(run / "checkpoints", 1, None, self.fence.delete)
        self.fence.end("finished")

    def _save(self, begun: int) -> None:
        assert self.fence is not None
        run = self.run
        self.fence.write_json(run / "environment.json", {"launch": self.fence.number, "begun": begun})
        saved = checkpoint_folder(self.fence.saves, begun + 1)
        fence.at("about to save")
        with self.fence.or_displaced():
            # As Megatron does, with the folders above it.
            saved.mkdir(parents=True, exist_ok=True)
            fence.at("saving")
            for name in ("__0_0.distcp", "metadata.json"):
                (saved / name).write_text(self.name)
            fence.at("saved")
            mark_complete(saved, step=begun + 1)
        fence.at("marked")
        self.fence.give(saved, checkpoint_folder(run / "checkpoints", begun + 1))
        fence.at("in place")

    def stop_at(self, point: str) -> None:
        """In the thread: hands back and waits for the next turn."""
        self.point = point
        self._back.release()
        self._turn.acquire()
        if self._abandoned:
            raise _Abandoned

    def step(self) -> None:
        """Lets the launch run to its next point."""
        self._turn.release()
        self._wait()

    def _wait(self) -> None:
        assert self._back.acquire(timeout=_SECONDS), f"{self.name} hangs at {self.point}"

    def abandon(self) -> None:
        self._abandoned = True
        while not self.over:
            self.step()
        self.thread.join()
        for descriptor in self.fence._open.values() if self.fence else ():
            os.close(descriptor)

    def state(self) -> Any:
        """Where it stands: frames with their lines and variables, and what its open files are."""
        if self.over:
            return "over"
        frames, frame = [], sys._current_frames()[self.thread.ident or 0]
        found: FrameType | None = frame
        while found is not None:
            if Path(found.f_code.co_filename) in _SEEN.values() and found.f_code.co_name != "stop_at":
                values = {name: _plain(value) for name, value in found.f_locals.items()}
                frames.append((found.f_code.co_name, found.f_lineno, sorted(values.items())))
            found = found.f_back
        return self.point, frames, self.open_files()

    def open_files(self) -> list[Any]:
        held = self.fence._open if self.fence is not None else {}
        return [
            (path.name, path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)))
            for path, descriptor in held.items()
        ]


def _plain(value: Any) -> str:
    if isinstance(value, int | str | Path | list | tuple | dict | None):
        return repr(value)
    return repr((value.number, value.writer)) if isinstance(value, Fence) else type(value).__name__


def _at(point: str) -> None:
    _me.actor.stop_at(point)


def _content(folder: Path, hidden: Sequence[str] = ()) -> dict[str, bytes | None]:
    """All folders and files."""
    found: dict[str, bytes | None] = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in hidden]
        found |= {os.path.relpath(Path(place) / name, folder): None for name in folders}
        found |= {
            os.path.relpath(Path(place) / name, folder): (Path(place) / name).read_bytes() for name in names
        }
    return found


@dataclass
class Explored:
    """How much was explored."""

    states: int = 0
    schedules: int = 0


class _Schedule:
    """One execution."""

    def __init__(self, folder: Path, launches: int, saves: bool) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.saves, self.turns, self._switches = folder, saves, list[int](), 0
        first = checkpoint_folder(folder / "checkpoints", 1)
        first.mkdir(parents=True)
        (first / "metadata.json").write_text("before")
        mark_complete(first, step=1)
        (folder / "metrics.jsonl").write_bytes(b'{"step":1,"launch":0}\n')
        self.actors = [_Actor("abc"[number], folder, saves) for number in range(launches)]

    def open(self) -> list[int]:
        return [number for number, actor in enumerate(self.actors) if not actor.over]

    def switches(self) -> int:
        """How often a launch lost its turn though it could have gone on."""
        return self._switches

    def take_turn(self, number: int) -> None:
        self._switches += (
            bool(self.turns) and number != self.turns[-1] and not self.actors[self.turns[-1]].over
        )
        actor = self.actors[number]
        mine = actor.fence.number if actor.taken and actor.fence else None
        # A launch that has come out of `take` owns the run until the next one does.
        lost = mine is not None and any(
            other.taken and other.fence and other.fence.number > mine for other in self.actors
        )
        before = _content(self.folder, ("writing", "launches")) if lost else {}
        ends = _ends(self.folder)
        was_taken = actor.taken
        self.turns.append(number)
        actor.step()
        if actor.failure is not None:
            raise ViolationError(f"{self}: {actor.failure!r}") from actor.failure
        if lost and before != (after := _content(self.folder, ("writing", "launches"))):
            changed = sorted(name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0))
            raise ViolationError(f"{self}: launch {mine} had lost the run and changed {changed}")
        if was_taken and (_ends(self.folder) - ends) - {mine}:
            raise ViolationError(f"{self}: launch {mine} recorded the end of another")
        numbers = [other.fence.number for other in self.actors if other.taken and other.fence]
        if len(set(numbers)) < len(numbers):
            raise ViolationError(f"{self}: two launches have one number: {numbers}")
        if not self.open():
            self._check_end(max(numbers))

    def _check_end(self, last: int) -> None:
        """The last launch's checkpoint is the last, complete, and its own; its row is in the log."""
        (owner,) = [
            actor for actor in self.actors if actor.taken and actor.fence and actor.fence.number == last
        ]
        steps = complete_steps(self.folder / "checkpoints")
        folder = checkpoint_folder(self.folder / "checkpoints", steps[-1])
        rows = [orjson.loads(line) for line in (self.folder / "metrics.jsonl").read_bytes().splitlines()]
        if self.saves and ((folder / "metadata.json").read_text() != owner.name or len(steps) != 1):
            raise ViolationError(f"{self}: the last launch's checkpoint is not there alone: {steps}")
        if rows[-1]["launch"] != last or (self.saves and rows[-1]["step"] != steps[-1]):
            raise ViolationError(f"{self}: the last row is {rows[-1]}")

    def state(self) -> bytes:
        return repr((_content(self.folder), [actor.state() for actor in self.actors])).encode()

    def close(self) -> None:
        for actor in self.actors:
            actor.abandon()

    def __str__(self) -> str:
        names = "".join(self.actors[number].name for number in self.turns)
        return f"turns {names}, now at {[actor.point for actor in self.actors]}"


def _ends(folder: Path) -> set[int]:
    return {int(path.name.split(".")[0]) for path in (folder / "launches").glob("*.ended.json")}


def explore(
    folder: Path,
    launches: int,
    patch: Callable[[Any, str, Any], None],
    *,
    saves: bool = True,
    switches: int | None = None,
) -> Explored:
    """Runs every interleaving.

    Args:
        folder: is made and deleted many times.
        launches: 2 or 3.
        patch: `monkeypatch.setattr`.
        saves: whether each saves a checkpoint and deletes the one before.
        switches: at most so many times another launch gets the turn while one could go on; None: always.

    Raises:
        ViolationError: one breaks the protocol.
    """

    def name(text: str, suffix: str = "partial") -> str:
        return f".{text}.{_me.actor.name}.{suffix}" if hasattr(_me, "actor") else f".{text}.{suffix}"

    for module in (fence, files):
        patch(module, "temporary_name", name)
    for module in (fence, claim):
        patch(module, "now", lambda: "now")
    patch(claim.secrets, "token_hex", lambda size: _me.actor.name * size)
    patch(os, "fsync", lambda descriptor: None)
    for module in (fence, files):
        patch(module, "fsync_path", lambda path: None)
    patch(fence, "at", _at)
    done, seen, left = Explored(), set[bytes](), list[tuple[int, ...]]([()])
    while left:
        prefix = left.pop()
        schedule = _Schedule(folder, launches, saves)
        done.schedules += 1
        try:
            for number in prefix:
                schedule.take_turn(number)
            while turns := schedule.open():
                last = schedule.turns[-1] if schedule.turns else turns[0]
                first = last if last in turns else turns[0]
                used = schedule.switches()
                state = schedule.state() + repr((first, used) if switches is not None else "").encode()
                if state in seen:
                    break
                seen.add(state)
                if switches is None or used < switches or first != last:
                    left += [(*schedule.turns, other) for other in turns if other != first]
                schedule.take_turn(first)
        finally:
            schedule.close()
    done.states = len(seen)
    return done
