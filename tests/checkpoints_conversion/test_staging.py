"""Output folders appear complete or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.checkpoints_conversion.staging import staged_folder


def test_appears_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


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
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from emma.checkpoints_conversion.staging import staged_folder
with staged_folder(Path({str(tmp_path / "out")!r})) as folder:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / f".out.{socket.gethostname()}-{os.getppid()}.partial"  # of a process that runs
    other.mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "out"])
