from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.processes import process_pool, result_of

PARENT = """
import os, time
from emma.base.processes import process_pool

if __name__ == "__main__":
    with process_pool(2, preload=[]) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(8)}, flush=True)
        time.sleep(60)
"""


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


FORKED = """
import os, time
from multiprocessing import forkserver
from emma.base.processes import fork_forkserver, process_pool

loaded = []

def state():
    assert os.environ["RAYON_NUM_THREADS"] == "1" and loaded == [os.getppid()]
    return os.getpid()

if __name__ == "__main__":
    fork_forkserver(lambda: loaded.append(os.getpid()))
    with process_pool(2, preload=[]) as pool:
        workers = {pool.submit(state).result() for _ in range(8)}
        print(forkserver._forkserver._forkserver_pid, *workers, flush=True)
        assert not loaded
        time.sleep(60)
"""


@pytest.mark.parametrize("source", [PARENT, FORKED])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, source: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers and all(alive(worker) for worker in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def test_the_working_folder_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    script = tmp_path / "program" / "parent.py"
    script.write_text(PARENT.replace("preload=[]", "preload=['numpy']").replace("time.sleep(60)", ""))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "numpy.py").write_text('raise RuntimeError("a module of the user")')
    (folder / "emma.py").write_text('raise RuntimeError("a module of the user")')
    run = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "a module of the user" not in run.stderr
    assert run.stdout.split()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_are_replaced_after_some_tasks() -> None:
    with process_pool(2, preload=[], tasks=2) as pool:
        found = []
        for _ in range(4):
            found += [task.result() for task in [pool.submit(os.getpid), pool.submit(os.getpid)]]
        counts = Counter(found)
        assert set(counts.values()) == {2}
        assert os.getpid() not in counts
        ended = found[0]
        until = time.monotonic() + 20
        while alive(ended) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(ended)


@pytest.mark.parametrize("tasks", [None, 2])
def test_a_killed_worker_is_reported(tasks: int | None) -> None:
    with process_pool(2, preload=[], tasks=tasks) as pool:
        task = pool.submit(die)
        with pytest.raises(UserError, match="was killed"):
            result_of(task)


def test_a_process_that_was_killed_is_replaced_for_later_tasks() -> None:
    with process_pool(2, preload=[], tasks=9) as pool:
        for _ in range(2):
            with pytest.raises(UserError, match="was killed"):
                result_of(pool.submit(die))
        assert result_of(pool.submit(os.getpid)) != os.getpid()
