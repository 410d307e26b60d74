"""What a launch may write, case by case; every interleaving is in `test_fence_model.py`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.runs import fence as module
from emma.tools.runs.checkpoints import complete_steps, mark_complete
from emma.tools.runs.claim import Claim
from emma.tools.runs.fence import Claims, DisplacedError, Fence, InUseError
from emma.tools.runs.run_folder import IDENTITY, RunFolder
from tests.small_recipe import small_recipe


def gone(claim: Claim) -> str:
    return "taken over by hand"


@pytest.fixture
def first(tmp_path: Path) -> Fence:
    return Claims(tmp_path).take(gone)


def test_a_displaced_launch_fails_in_every_way_to_write(tmp_path: Path, first: Fence) -> None:
    log, saved = tmp_path / "metrics.jsonl", first.saves / "iter_0000005"
    first.append(log, b"1")
    saved.mkdir(parents=True)
    (saved / "part").write_text("half")
    (tmp_path / "checkpoints" / "iter_0000004").mkdir()
    second = Claims(tmp_path).take(gone)
    for write in (
        lambda: first.append(log, b"2"),
        lambda: first.write_json(tmp_path / "x.json", {}),
        lambda: first.take(tmp_path / "checkpoints" / "iter_0000004", "elsewhere"),
        lambda: first.delete(tmp_path / "checkpoints" / "iter_0000004"),
        lambda: first.give(saved, tmp_path / "checkpoints" / "iter_0000005"),
        first.check,
    ):
        with pytest.raises(
            DisplacedError, match=r"names launch 2 \(process .* took this run over\. Launch 1 writes"
        ):
            write()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        saved.mkdir(parents=True)
    assert second.held() and not first.held()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "launches",
        "metrics.jsonl",
        "writing",
    ]
    assert log.read_bytes() == b"1\n" and not list(tmp_path.rglob("part"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iter_0000004"]


def test_what_an_open_log_still_gets_reaches_nobody(tmp_path: Path, first: Fence) -> None:
    log = tmp_path / "metrics.jsonl"
    first.append(log, b"1")
    second = Claims(tmp_path).take(gone)
    os.write(first._open[log], b"late\n")
    second.append(log, b"2")
    assert log.read_bytes() == b"1\n2\n"


def test_a_log_that_a_person_has_edited_is_opened_again(tmp_path: Path, first: Fence) -> None:
    log = tmp_path / "metrics.jsonl"
    first.append(log, b"1")
    edited = tmp_path / "edited"
    edited.write_bytes(b"mended\n")
    edited.replace(log)
    first.append(log, b"2")
    assert log.read_bytes() == b"mended\n2\n"


def test_a_complete_checkpoint_of_a_dead_launch_is_put_in_place(tmp_path: Path, first: Fence) -> None:
    for step, complete in ((5, True), (6, False)):
        saved = first.saves / f"iter_{step:07d}"
        saved.mkdir(parents=True)
        (saved / "metadata.json").write_text("x")
        if complete:
            mark_complete(saved, step=step)
    Claims(tmp_path).take(gone)
    assert complete_steps(tmp_path / "checkpoints") == [5]
    assert not list(tmp_path.rglob("iter_0000006"))


def test_a_checkpoint_that_a_dead_launch_was_moving_gets_its_name(tmp_path: Path, first: Fence) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "iter_0000004").mkdir()
    (checkpoints / "iter_0000004" / "part").write_text("whole")
    first.take(checkpoints / "iter_0000004", "set-aside-4")
    Claims(tmp_path).take(gone)
    assert [path.name for path in checkpoints.iterdir()] == ["set-aside-4"]
    assert (checkpoints / "set-aside-4" / "part").read_text() == "whole"


def test_a_checkpoint_that_is_saved_again_replaces_the_old_one(tmp_path: Path, first: Fence) -> None:
    target, saved = tmp_path / "checkpoints" / "iter_0000005", first.saves / "iter_0000005"
    for folder, name in ((target, "old"), (saved, "new")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    first.give(saved, target)
    assert [path.name for path in target.iterdir()] == ["new"] and not saved.exists()


def test_one_that_ended_is_not_asked_about_and_its_desk_is_closed(tmp_path: Path, first: Fence) -> None:
    first.saves.mkdir(parents=True)
    first.end("finished")
    assert not first.desk.exists()
    Claims(tmp_path).take(lambda claim: pytest.fail("asked"))
    assert first.desk.is_file()
    claims = Claims(tmp_path)
    assert (claims.end_of(1) or {})["how"] == "finished"
    claims.record_end(1, "something else")
    assert (claims.end_of(1) or {})["how"] == "finished", "the first word stays"


def test_one_sign_that_the_run_is_lost_is_enough(tmp_path: Path, first: Fence) -> None:
    """A launch that is declared dead has no successor yet; over a network, the end may be seen after the next claim."""
    claims = Claims(tmp_path)
    claims.record_end(1, "its node is gone")
    assert not first.held()
    with pytest.raises(DisplacedError, match="the end of this launch: its node is gone"):
        first.append(tmp_path / "metrics.jsonl", b"1")
    with pytest.raises(DisplacedError, match="its node is gone"):
        first.delete(tmp_path / "checkpoints" / "iter_0000005")  # another launch may have moved it
    claims.take(gone)
    claims.end_file(1).unlink()
    assert not first.held()


def test_what_a_killed_loser_left_does_not_stand_for_the_winner(tmp_path: Path, first: Fence) -> None:
    """The desk of the winner is closed, though it does not exist and another of its number does."""
    first.end("finished")
    (tmp_path / "writing" / "000001-0000").mkdir()
    Claims(tmp_path).take(gone)
    assert first.desk.is_file() and not (tmp_path / "writing" / "000001-0000").exists()


def test_a_loser_leaves_nothing(tmp_path: Path, first: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_is_faster(point: str) -> None:
        if point == "link":
            monkeypatch.setattr(module, "at", lambda point: None)
            Claims(tmp_path).take(gone)

    first.end("finished")
    monkeypatch.setattr(module, "at", another_is_faster)
    with pytest.raises(InUseError, match=r"000002\.json: another launch took this run at this moment"):
        Claims(tmp_path).take(gone)
    assert len(list((tmp_path / "writing").glob("000002-*"))) == 1


def test_a_launch_of_an_older_version_is_respected(tmp_path: Path) -> None:
    (tmp_path / "logs" / "launch-0007").mkdir(parents=True)
    (tmp_path / "writer.json").write_text("{}")
    with pytest.raises(InUseError, match=r"writer\.json: a launch of an older version holds this run"):
        Claims(tmp_path).take(gone)
    (tmp_path / "writer.json").unlink()
    assert Claims(tmp_path).take(gone).number == 8


def test_checkpoints_on_another_file_system_are_refused(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    (tmp_path / "checkpoints").symlink_to(memory)
    with pytest.raises(UserError, match=r"another file system .*Fix: move the whole run folder"):
        Claims(tmp_path).take(gone)
    assert Claims(tmp_path).latest() is None


def test_a_desk_that_may_not_be_moved_is_an_error(
    tmp_path: Path, first: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match=r"may not move it .*Fix: let its owner run `chmod -R g\+w"):
        Claims(tmp_path).take(gone)
    assert (Claims(tmp_path).end_of(2) or {})["how"] == "could not shut out earlier launches"
    assert first.desk.is_dir() and not first.held()


@pytest.mark.parametrize("identity", ["", "2-abc", "1-abc", "x", "-", "1"])
def test_ranks_without_a_launch_of_this_run_do_not_start(
    identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe)
    monkeypatch.setenv(IDENTITY, identity)
    with pytest.raises(UserError, match=r"EMMA_LAUNCH is not set|is not launch"):
        run.own_launch()
    monkeypatch.setenv(IDENTITY, launch.identity)
    assert run.own_launch() == launch


def test_a_launch_that_cannot_be_prepared_gives_the_run_back(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, ["start={mode: weights, checkpoint: nowhere}"])
    run = RunFolder(recipe.run_folder)
    with pytest.raises(UserError, match="nowhere does not exist"):
        run.prepare(recipe)
    assert run.claims.writer() is None and not list((run.path / "writing").iterdir())
