"""Atomic files: durable in the right order, and safe from writers elsewhere that have the same process id."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from emma.base.claims import machine, remove_abandoned, temporary_name
from emma.base.files import atomic_write, read_json, sha256_file, write_json, write_text
from tests.base.fsyncs import record_fsyncs


def test_a_file_is_durable_before_its_name_and_its_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record_fsyncs(monkeypatch)
    write_text(tmp_path / "file", "x")
    (content, temporary), *rest = events
    assert (
        content == "fsync" and temporary.startswith(f"{tmp_path}/.file.") and temporary.endswith(".partial")
    )
    assert rest == [("rename", str(tmp_path / "file")), ("fsync", str(tmp_path))]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file", "w") as handle:
        handle.write("new")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writers_with_the_same_process_id_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers, in both of which the writer is process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with atomic_write(tmp_path / "file", "w") as first:
        first.write("first")
        with atomic_write(tmp_path / "file", "w") as second:
            second.write("second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    name = temporary_name("file")
    assert socket.gethostname().replace(".", "_") in name and machine() in name and "-1-" in name


KILLED = """
import os, signal, sys
from pathlib import Path
from emma.base.files import atomic_write
with atomic_write(Path(sys.argv[1]) / "file") as handle:
    handle.write(b"half")
    handle.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_what_dead_writers_of_this_machine_left_is_abandoned(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-P", "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (dead,) = tmp_path.iterdir()
    elsewhere = tmp_path / dead.name.replace(machine(), "another-00000000")
    elsewhere.touch()
    with atomic_write(tmp_path / "living") as handle:
        remove_abandoned(tmp_path.glob(".*.partial"))
        assert not dead.exists() and elsewhere.exists()
        handle.write(b"whole")
    assert (tmp_path / "living").read_bytes() == b"whole"


def test_the_first_to_write_into_a_folder_removes_what_killed_writers_left(tmp_path: Path) -> None:
    """Whatever its name, but no staged folder, which has a lock of its own, and nothing that a user calls so."""
    subprocess.run([sys.executable, "-P", "-c", KILLED, str(tmp_path)], check=False)
    (dead,) = tmp_path.iterdir()
    (tmp_path / temporary_name("folder")).mkdir()
    (tmp_path / ".mine.partial").touch()
    kept = set(tmp_path.iterdir()) - {dead}
    with atomic_write(tmp_path / "living") as handle:
        write_text(tmp_path / "other", "x")
        handle.write(b"whole")
    assert set(tmp_path.iterdir()) == kept | {tmp_path / "living", tmp_path / "other"}


def test_a_file_that_has_just_been_made_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    """Between creating and locking a file, anyone may look at it; writers check that it is still theirs."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            remove_abandoned(tmp_path.glob(".*.partial"))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(300):
            write_json(tmp_path / "file.json", number)
            assert read_json(tmp_path / "file.json") == number
    finally:
        done.set()
        sweeper.join()


def test_a_hash_covers_the_whole_file(tmp_path: Path) -> None:
    content = bytes(9 << 20) + b"the rest"
    (tmp_path / "large").write_bytes(content)
    assert sha256_file(tmp_path / "large") == hashlib.sha256(content).hexdigest()
