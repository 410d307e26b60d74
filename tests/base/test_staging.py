"""Output folders appear whole or not at all, and have one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from emma.base import staging, writers
from emma.base.claims import machine, temporary_name
from emma.base.errors import UserError
from emma.base.staging import (
    WORK_NAME,
    WrittenMeanwhileError,
    check_free_space,
    resumable_folder,
    staged_folder,
)
from emma.base.writers import InUseError, sole_writer
from tests.base.fsyncs import record_fsyncs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]


def test_nothing_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_overwriting_keeps_the_old_one_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(UserError, match="exists"), staged_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "out", overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "old").exists()
    with staged_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("y")
    assert names(tmp_path / "out") == ["new"] and names(tmp_path) == ["out"]


def test_everything_is_durable_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record_fsyncs(monkeypatch)
    with staged_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        (folder / "link").symlink_to("nowhere")
    renamed = events.index(("rename", str(tmp_path / "out")))
    assert {path for kind, path in events[:renamed] if kind == "fsync"} == {
        str(folder),
        str(folder / "inner"),
        str(folder / "inner" / "file"),
    }
    assert events[renamed + 1 :] == [("fsync", str(tmp_path))]


WRITER = """
import sys, time
from pathlib import Path
from emma.base.staging import staged_folder
with staged_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "file").write_text("another's")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(destination: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing `destination` until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, str(destination)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with another_writer(tmp_path / "out") as other:
        with (
            pytest.raises(
                InUseError, match=rf"out: process {other.pid} of \S+ on \S+ since 20\d\d-.* is writing it"
            ),
            staged_folder(tmp_path / "out"),
        ):
            pytest.fail("the block must not run")
        assert len(names(tmp_path)) == 2, "the other's folder and lock are untouched"
        other.communicate()
        assert other.returncode == 0
    assert (tmp_path / "out" / "file").read_text() == "another's" and names(tmp_path) == ["out"]


def test_a_waiting_writer_says_whom_it_waits_for_and_writes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_writer(tmp_path / "out") as other:
        # The first check while waiting ends the other's work.
        monkeypatch.setattr(time, "sleep", lambda _: other.communicate() if other.poll() is None else None)
        with sole_writer(tmp_path / "out", wait=True):
            assert (tmp_path / "out" / "file").exists()
    assert f"waiting for process {other.pid} of " in capsys.readouterr().err
    assert names(tmp_path) == ["out"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    with another_writer(tmp_path / "out") as other:
        other.kill()
    assert other.returncode == -signal.SIGKILL and len(names(tmp_path)) == 2
    with staged_folder(tmp_path / "out"):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["out"]


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    with another_writer(tmp_path / "out") as other:
        other.terminate()
        assert other.wait() == 128 + signal.SIGTERM
    assert names(tmp_path) == []


def test_what_another_machine_may_be_writing_is_named_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / temporary_name("out").replace(machine(), "another-00000000")
    foreign.mkdir()
    neighbour = tmp_path / temporary_name("out.b")  # of an output whose name starts the same way
    neighbour.mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([foreign.name, neighbour.name, "out"])
    told = capsys.readouterr().err
    assert f"{foreign}: left by a process of another machine" in told and neighbour.name not in told


def test_a_folder_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    """A kill between the two renames of an exchange."""
    (tmp_path / temporary_name("out", "old")).mkdir()
    (tmp_path / names(tmp_path)[0] / "precious").touch()
    (tmp_path / temporary_name("out")).mkdir()
    with pytest.raises(UserError, match="out: exists"), staged_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["precious"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_result_that_came_meanwhile_from_elsewhere_stays(tmp_path: Path, overwrite: bool) -> None:
    """Another machine, which this one's locks don't reach."""
    if overwrite:
        (tmp_path / "out").mkdir()
    with (
        pytest.raises(WrittenMeanwhileError, match="out: another process wrote it in the meantime"),
        staged_folder(tmp_path / "out", overwrite=overwrite),
    ):
        if overwrite:
            (tmp_path / "out").rename(tmp_path / "gone")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path / "out") == ["theirs"]
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_without_locks_nothing_counts_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Lustre mounted without flock."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    left = tmp_path / temporary_name("out")
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == sorted([left.name, "out"]) and str(left) in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_leftovers_of_another_user_are_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that a team shares: one member's job was killed, another member's comes next."""
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        shared.chmod(0o707)  # not by the group, which could remove what is left
        before = os.umask(0o077)
        try:
            with another_writer(shared / "out") as other:
                other.kill()
            (left,) = shared.glob(".out.*.partial")
            os.setegid(65534)
            os.seteuid(65534)
            with staged_folder(shared / "out") as folder:
                (folder / "file").touch()
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.umask(before)
        assert names(shared) == sorted([left.name, "out"])
    assert f"{left}: left by a process of another user" in capsys.readouterr().err


def work(destination: Path, fingerprint: str, *, fail: bool) -> list[str]:
    """Does two pieces of work, the second of which may fail; returns which were already done."""
    with resumable_folder(destination, fingerprint) as folder:
        done = sorted(path.stem for path in (folder / WORK_NAME).glob("*.json"))
        (folder / "one").write_text("1")
        (folder / WORK_NAME / "one.json").write_text("{}")
        (folder / temporary_name("two")).touch()  # what a killed worker was writing
        if fail:
            raise ZeroDivisionError
        for path in folder.glob(".two.*"):
            path.unlink()
        (folder / "two").write_text("2")
    return done


def test_a_resumable_folder_keeps_what_was_finished(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        work(tmp_path / "out", "a", fail=True)
    assert names(tmp_path) == [".out.partial"]
    assert work(tmp_path / "out", "a", fail=False) == ["one"]
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["one", "two"]


def test_work_with_another_fingerprint_begins_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        work(tmp_path / "out", "a", fail=True)
    assert work(tmp_path / "out", "b", fail=False) == []


def test_a_resumed_folder_has_no_half_written_files(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        work(tmp_path / "out", "a", fail=True)
    with resumable_folder(tmp_path / "out", "a") as folder:
        assert names(folder) == [WORK_NAME, "one"]


def test_work_of_another_machine_is_not_continued_silently(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        work(tmp_path / "out", "a", fail=True)
    lock = tmp_path / ".out.lock"
    writer = {"machine": "n7-00000000", "host": "n7", "process": 5, "since": "2026-01-01T00:00:00+00:00"}
    lock.write_bytes(orjson.dumps(writer))
    with pytest.raises(InUseError, match=rf"process 5 on n7 since 2026-.* may still be.* remove {lock}"):
        work(tmp_path / "out", "a", fail=False)
    assert lock.exists() and (tmp_path / ".out.partial" / "one").exists()
    lock.unlink()
    assert work(tmp_path / "out", "a", fail=False) == ["one"]


def test_too_little_space_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / "deep" / "out", free // 2)
    with pytest.raises(UserError, match=r"out: .* are to be written, but .* are free"):
        check_free_space(tmp_path / "deep" / "out", 2 * free)


def test_a_lock_file_removed_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes its lock file and ends while another has opened that file but not locked it yet."""
    real, removed = writers.try_lock, []

    def late(descriptor: int) -> bool | None:
        if not removed:
            removed.append(True)
            (tmp_path / ".out.lock").unlink()
        return real(descriptor)

    monkeypatch.setattr(writers, "try_lock", late)
    with sole_writer(tmp_path / "out"):
        assert (tmp_path / ".out.lock").exists()
        with pytest.raises(InUseError), sole_writer(tmp_path / "out"):
            pytest.fail("two sole writers")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_between_the_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise interrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(interrupt), staged_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["precious"]


def test_what_is_replaced_and_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On NFS, a file that somebody reads keeps its folder from being removed."""
    (tmp_path / "out").mkdir()
    real = shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).suffix == ".old":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for content in ("first", "second"):
        with staged_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / content).touch()
        assert names(tmp_path / "out") == [content]
        assert "Directory not empty" in capsys.readouterr().err


def test_an_interrupt_at_the_end_keeps_what_a_resumable_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making everything durable takes minutes where there is much of it."""

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_synchronise", interrupt)
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path / "out", "a", fail=False)
    assert work(tmp_path / "out", "a", fail=False) == ["one"]


def test_a_lock_file_that_was_removed_by_hand_takes_no_other_along(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    with sole_writer(tmp_path / "out"):
        lock.unlink()
        other = sole_writer(tmp_path / "out")
        other.__enter__()
    assert lock.exists(), "the second writer's, which is writing still"
    with pytest.raises(InUseError), sole_writer(tmp_path / "out"):
        pytest.fail("two sole writers")
    other.__exit__(None, None, None)
    assert names(tmp_path) == []


def test_a_lock_file_that_another_machine_removes_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, what is open here and removed there is stale for every call."""
    lock, stale = tmp_path / ".out.lock", OSError(errno.ESTALE, "Stale file handle")
    real, fstat = fcntl.flock, os.fstat
    locked: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        locked.append(descriptor)
        if len(locked) == 1:
            lock.unlink()
            raise stale
        real(descriptor, operation)

    def gone(descriptor: int) -> os.stat_result:
        raise stale

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path / "out"):
        assert len(locked) == 2 and lock.exists()
        (tmp_path / "next").touch()
        (tmp_path / "next").rename(lock)
        monkeypatch.setattr(os, "fstat", gone)
        monkeypatch.setattr(os, "ftruncate", gone)
    monkeypatch.setattr(os, "fstat", fstat)
    assert lock.exists(), "the next writer's"


def test_a_folder_that_goes_while_its_lock_file_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that finishes a component of a store removes the folder of its units' lock files."""
    real, removed = os.open, []

    def late(path: Path, flags: int, *mode: int) -> int:
        if Path(path).suffix == ".lock" and not removed:
            removed.append(path)
            (tmp_path / "work").rmdir()
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", late)
    with sole_writer(tmp_path / "work" / "unit") as lock:
        assert removed and lock.certain and names(tmp_path / "work") == [".unit.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_that_may_not_be_written_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        shared.chmod(0o755)
        (shared / "mine").mkdir()
        os.chown(shared / "mine", 65534, -1)
        try:
            os.seteuid(65534)
            denied = rf"mine: {shared}/\.mine\.lock can't be made .*denied.*Fix"
            with pytest.raises(UserError, match=denied), sole_writer(shared / "mine"):
                pytest.fail("the block must not run")
            # What is written in place needs no right to the folder beside it.
            with sole_writer(shared / "mine", inside=True):
                assert names(shared / "mine") == [".lock"]
        finally:
            os.seteuid(0)


def test_two_links_to_an_output_that_is_written_in_place_are_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with (
        sole_writer(tmp_path / "disk", inside=True),
        pytest.raises(InUseError, match=rf"link: process {os.getpid()} of"),
        sole_writer(tmp_path / "link", inside=True),
    ):
        pytest.fail("two sole writers")


def test_what_a_library_wrote_for_its_owner_alone_gets_the_modes_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "out") as partial:
            (partial / "private").write_bytes(b"x")
            (partial / "private").chmod(0o600)
            (partial / "script").write_bytes(b"x")
            (partial / "script").chmod(0o755)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {"private": 0o640, "script": 0o755}


def test_a_full_disk_is_named_by_the_output(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, staged_folder(tmp_path / "out"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert caught.value.filename == str(tmp_path / "out")
