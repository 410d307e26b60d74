"""The launch protocol (docs/launch_protocol.md): every interleaving of two and of three launches, each stopped or killed
at every point; and that each part of the protocol is needed, by taking it away."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emma.base.files import write_json
from emma.tools.runs import fence
from emma.tools.runs.fence import Claims, Fence
from tests.tools.runs.interleavings import ViolationError, explore

type Patch = Callable[[Any, str, Any], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: the folder is made thousands of times."""
    memory = Path("/dev/shm")
    place = memory / f"{tmp_path.parent.name}-{tmp_path.name}" if memory.is_dir() else tmp_path / "run"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_every_interleaving_of_two_launches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.process_time()
    done = explore(folder, 2, monkeypatch.setattr)
    print(f"{done.states} states, {done.schedules} schedules, {time.process_time() - begun:.1f} s")
    assert done.states > 500


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_interleavings_of_three_launches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of short lives: taking the run, a row of the log, the end. The turn may change twice before its launch is over,
    anywhere."""
    done = explore(folder, 3, monkeypatch.setattr, saves=False, switches=2)
    print(f"{done.states} states, {done.schedules} schedules")
    assert done.states > 300


def claim_by_overwriting(patch: Patch) -> None:
    def create(path: Path, value: Any) -> bool:
        fence.at("link")
        write_json(path, value)
        return True

    patch(fence, "_create", create)


def desks_left_alone(patch: Patch) -> None:
    patch(Fence, "_earlier_desks", lambda self: [])
    patch(Fence, "_unclaimed_desks", lambda self: [])


def logs_kept(patch: Patch) -> None:
    patch(fence, "LOGS", ())


def log_opened_without_a_look(patch: Patch) -> None:
    patch(Fence, "held", lambda self: True)


def end_of_the_latest(patch: Patch) -> None:
    right = Claims.record_end

    def record_end(self: Claims, number: int, how: str) -> None:
        latest = self.latest()
        right(self, latest.number if latest else number, how)

    patch(Claims, "record_end", record_end)


def saved_in_place(patch: Patch) -> None:
    right = Fence.__init__

    def init(self: Fence, run: Path, number: int, writer: str) -> None:
        right(self, run, number, writer)
        self.saves = run / "checkpoints"

    patch(Fence, "__init__", init)
    patch(Fence, "give", lambda self, source, target: None)


def deleted_in_place(patch: Patch) -> None:
    def delete(self: Fence, path: Path) -> None:
        fence.at("doomed")
        shutil.rmtree(path, ignore_errors=True)

    patch(Fence, "delete", delete)


def files_written_beside_their_place(patch: Patch) -> None:
    """Whole, by a rename, but not from the desk."""

    @contextlib.contextmanager
    def writing(self: Fence, target: Path) -> Iterator[Path]:
        beside = target.with_name(f".{target.name}-{self.writer}")
        beside.touch()
        yield beside
        fence.at("written")
        beside.replace(target)

    patch(Fence, "writing", writing)


def desks_only_renamed(patch: Patch) -> None:
    """Nothing keeps the folder from being made again."""

    def close(self: Fence, desk: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            desk.rename(self.desk / f"before-{desk.name}")
        fence.at("earlier desk taken")

    patch(Fence, "_close", close)


def looks_before_it_writes(patch: Patch) -> None:
    """What came before this protocol: ask whether the run is one's own, then write in place."""
    saved_in_place(patch)
    deleted_in_place(patch)

    def append(self: Fence, path: Path, line: bytes) -> None:
        self.check()
        fence.at("looked")
        with path.open("ab") as handle:
            handle.write(line + b"\n")

    patch(Fence, "append", append)


@pytest.mark.parametrize(
    "mutant",
    [
        *(claim_by_overwriting, desks_left_alone, logs_kept, log_opened_without_a_look, end_of_the_latest),
        *(saved_in_place, deleted_in_place, files_written_beside_their_place, desks_only_renamed),
        looks_before_it_writes,
    ],
)
def test_each_part_is_needed(
    mutant: Callable[[Patch], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch.setattr)
    with pytest.raises(ViolationError) as found:
        explore(folder, 2, monkeypatch.setattr)
    print(found.value)
