"""The launcher of multi-rank tests: results, failures, signals, time-outs, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.ranks import RanksError, run_ranks, start_ranks


def place(name: str) -> dict[str, str | int]:
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", name)
    return {key: os.environ[key] for key in wanted} | {"pid": os.getpid()}


def all_reduce() -> float:
    import torch

    torch.distributed.init_process_group("gloo")
    total = torch.tensor([float(torch.distributed.get_rank() + 1)])
    torch.distributed.all_reduce(total)
    return total.item()


def fail_in_rank(which: int) -> None:
    rank = int(os.environ["RANK"])
    print(f"rank {rank} is here", flush=True)
    if rank == which:
        raise ValueError("the soup is cold")
    time.sleep(600)


def wait_for_signal(with_child: bool) -> str:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    if with_child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid} ", flush=True)
    print("ready", flush=True)
    while not received:
        time.sleep(0.02)
    return signal.Signals(received[0]).name


def exit_with(code: int) -> None:
    sys.exit(code)


def fork_count() -> int:
    assert threading.active_count() == 1
    return len(list(Path("/proc/self/task").iterdir()))


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_results_come_rank_by_rank_with_the_launchers_environment() -> None:
    results = run_ranks(place, 3, "SPECIAL", env={"SPECIAL": "yes"})
    assert [result["RANK"] for result in results] == ["0", "1", "2"]
    assert {result["WORLD_SIZE"] for result in results} == {"3"}
    assert {result["SPECIAL"] for result in results} == {"yes"}
    assert {result["OMP_NUM_THREADS"] for result in results} == {"1"}
    assert len({result["pid"] for result in results}) == 3


def test_ranks_talk_over_gloo() -> None:
    assert run_ranks(all_reduce, 3, timeout=60) == [6.0, 6.0, 6.0]


def test_the_server_forks_without_threads() -> None:
    assert run_ranks(fork_count, 2) == [1, 1]


def test_a_failing_rank_ends_the_others_and_shows_its_output() -> None:
    job = start_ranks(fail_in_rank, 3, 1)
    started = time.monotonic()
    with pytest.raises(RanksError, match=r"rank 1 ended with exit code 1(?s:.*)the soup is cold"):
        job.wait(timeout=100)
    assert time.monotonic() - started < 30
    assert job.exit_codes == {1: 1, 0: -signal.SIGKILL, 2: -signal.SIGKILL}
    assert not any(running(pid) for pid in job.pids)


def test_a_job_that_takes_too_long_is_killed_and_shows_where_it_stood() -> None:
    job = start_ranks(fail_in_rank, 2, 7)
    with pytest.raises(RanksError, match=r"ranks \[0, 1\] still ran after 1 s(?s:.*)fail_in_rank"):
        job.wait(timeout=1)
    assert not any(running(pid) for pid in job.pids)


def test_a_signal_reaches_the_running_ranks() -> None:
    job = start_ranks(wait_for_signal, 2, False)
    for rank in range(2):
        job.wait_for("ready", rank)
    job.signal(signal.SIGTERM)
    assert job.wait(timeout=20) == ["SIGTERM", "SIGTERM"]


def test_the_children_of_a_killed_rank_die_too() -> None:
    job = start_ranks(wait_for_signal, 1, True)
    job.wait_for("ready")
    child = int(job.output(0).split("child ")[1].split()[0])
    assert running(child)
    job.signal(signal.SIGKILL, rank=0)
    (outcome,) = job.outcomes(timeout=20)
    assert outcome.exit_code == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def test_exit_codes_come_back() -> None:
    job = start_ranks(exit_with, 2, 7)
    assert [outcome.exit_code for outcome in job.outcomes(timeout=20)] == [7, 7]
    assert run_ranks(exit_with, 1, 0) == [None]


def test_waiting_for_words_that_never_come_names_them() -> None:
    with pytest.raises(RanksError, match="rank 0 never wrote 'godot'"):
        start_ranks(place, 1, "HOME").wait_for("godot", timeout=20)
