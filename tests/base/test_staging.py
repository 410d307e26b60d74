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

from emma.base import staging
from emma.base.claims import machine, temporary_name
from emma.base.errors import UserError
from emma.base.staging import (
    WORK_NAME,
    InUseError,
    WrittenMeanwhileError,
    check_free_space,
    resumable_folder,
    sole_writer,
    staged_folder,
)
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
                InUseError, match=rf"out: process {other.pid} on \S+ since 20\d\d-.* is writing it"
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
    assert f"waiting for process {other.pid} on " in capsys.readouterr().err
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
        shared.chmod(0o777)
        before = os.umask(0o077)
        try:
            with another_writer(shared / "out") as other:
                other.kill()
            (left,) = shared.glob(".out.*.partial")
            os.seteuid(65534)
            with staged_folder(shared / "out") as folder:
                (folder / "file").touch()
        finally:
            os.seteuid(0)
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
    with pytest.raises(UserError, match=r"out: .* GB are to be written, but .* GB are free"):
        check_free_space(tmp_path / "deep" / "out", 2 * free)


def test_a_lock_file_removed_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes its lock file and ends while another has opened that file but not locked it yet."""
    real, removed = staging.try_lock, []

    def late(descriptor: int) -> bool | None:
        if not removed:
            removed.append(True)
            (tmp_path / ".out.lock").unlink()
        return real(descriptor)

    monkeypatch.setattr(staging, "try_lock", late)
    with sole_writer(tmp_path / "out"):
        assert (tmp_path / ".out.lock").exists()
        with pytest.raises(InUseError), sole_writer(tmp_path / "out"):
            pytest.fail("two sole writers")
