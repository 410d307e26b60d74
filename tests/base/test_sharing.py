"""Files and folders that a team shares: modes follow the folder, from one user to the next."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emma.base import sharing
from emma.base.files import append_line, atomic_write, write_text
from emma.base.processes import process_pool
from emma.base.sharing import parse_umask, set_umask, shared, umask
from emma.base.staging import resumable_folder, staged_folder
from tests.accounts import python_for_all


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    sharing._fixed = False
    os.umask(before)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A folder of a group: setgid, writable for it."""
    folder = tmp_path / "team"
    folder.mkdir()
    folder.chmod(0o2775)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_all(folder: Path) -> None:
    """By every way in which files come about here."""
    write_text(folder / "new" / "text", "a")
    append_line(folder / "lines" / "history.jsonl", b"{}")
    with atomic_write(folder / "binary") as handle:
        handle.write(b"a")
    with staged_folder(folder / "staged") as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "file").write_text("by any library")
    with resumable_folder(folder / "resumable", "a") as staged:
        (staged / "file").touch()
    with shared(folder), process_pool(2, preload=[]) as pool:
        pool.submit(Path(folder / "by-a-worker").touch).result()


def test_what_a_team_shares_all_may_write(team: Path) -> None:
    process_pool_started_before = process_pool(2, preload=[])
    with process_pool_started_before as pool:
        pool.submit(os.getpid).result()
    write_all(team)
    found = list(team.rglob("*"))
    assert len(found) == 11
    for path in found:
        assert mode(path) & 0o070 == (0o070 if path.is_dir() else 0o060), path
    assert umask() == 0o022, "elsewhere nothing has changed"


def test_what_is_not_shared_stays_so(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    write_all(tmp_path / "mine")
    assert not any(mode(path) & 0o020 for path in tmp_path.rglob("*"))


def test_a_umask_of_ones_own_stays(team: Path) -> None:
    set_umask("027")
    write_all(team)
    assert not any(mode(path) & 0o027 for path in team.rglob("*"))


@pytest.mark.parametrize("text", ["", "2", "0o02", "888", "77777", "-22", "700"])
def test_what_is_no_umask(text: str) -> None:
    with pytest.raises(ValueError, match="is not a umask"):
        parse_umask(text)


def test_threads_that_leave_in_another_order_restore_the_umask(team: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def inner() -> None:
        with shared(team):
            entered.set()
            leave.wait()
            assert umask() == 0o002

    thread = threading.Thread(target=inner)
    with shared(team):
        thread.start()
        entered.wait()
    leave.set()
    thread.join()
    assert umask() == 0o022


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")
def test_two_users_take_turns_at_the_same_files() -> None:
    """Two accounts, each with a group of its own, that share a third."""
    script = """
import os, sys
from pathlib import Path
import emma.base.files, emma.base.staging
os.setgroups([4242]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2])); os.umask(0o022)
team = Path(sys.argv[1])
emma.base.files.append_line(team / "run" / "history.jsonl", b"{}")
emma.base.files.write_text(team / "run" / "recipe.yaml", sys.argv[2])
with emma.base.staging.staged_folder(team / "store", overwrite=True) as folder:
    (folder / "file").write_text(sys.argv[2])
"""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        python = python_for_all(Path(name) / "tools")
        team = Path(name) / "team"
        team.mkdir()
        os.chown(team, 0, 4242)
        team.chmod(0o2770)
        for user in ("4301", "4302", "4301"):
            done = subprocess.run(
                [str(python), "-P", "-c", script, str(team), user],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        assert (team / "run" / "history.jsonl").read_text() == "{}\n" * 3
        assert (team / "store" / "file").read_text() == "4301"
