"""The thread that ends a rank without its run, and writes the beats of one that has it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from emma.tools.runs import guard as module
from emma.tools.runs.fence import Claims, DisplacedError, Fence
from emma.tools.runs.guard import guard
from emma.tools.runs.heartbeat import Beat, Heartbeat


def rank(fence: Fence, logs: Path) -> int:
    """A process with the thread, which does nothing else."""
    if (pid := os.fork()) == 0:
        guard(fence, Heartbeat(logs, writes=True))
        time.sleep(60)
        os._exit(0)
    return pid


def test_a_rank_that_wakes_without_its_run_writes_no_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps between two looks, as almost always, while another launch takes the run."""
    monkeypatch.setattr(module, "SECONDS", 0.3)
    logs, fence = tmp_path / "logs", Claims(tmp_path).take(lambda claim: "")
    logs.mkdir()
    pid = rank(fence, logs)
    while Beat.read(logs) is None:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    last = (logs / "heartbeat.json").read_bytes()
    Claims(tmp_path).take(lambda claim: "its node is lost")
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == DisplacedError.exit_code
    assert (logs / "heartbeat.json").read_bytes() == last
    assert [path.name for path in logs.iterdir()] == ["heartbeat.json"]
