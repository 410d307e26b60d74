"""Ranks that are forked from a process with their imports, in torchrun's place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.forked import can_fork, forking, is_alone
from emma.tools.training.launch import launch_command, rank_environment
from tests.tools.training.conftest import Small
from tests.training_run import losses, train_run

EMMA = str(Path(sys.executable).with_name("emma"))


def test_only_one_rank_on_a_cpu_of_this_machine_is_forked_and_only_where_its_environment_is_the_servers(
    make_small: Callable[[int], Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_small(10)
    recipe = small.recipe("asked")
    run = RunFolder(recipe.run_folder)
    assert is_alone(recipe) and not can_fork(rank_environment(recipe))
    assert "torchrun" in " ".join(launch_command(recipe, run, "logs"))
    monkeypatch.setenv("EMMA_RANKS", "/nowhere")
    for name, value in rank_environment(recipe).items():
        monkeypatch.setenv(name, value)
    assert launch_command(recipe, run, "logs")[-4:] == [
        *("emma.tools.training.forked", "rank", str(run.path), "logs")
    ]
    other = small.recipe("asked", "environment={MKL_CBWR: AVX2}")
    assert "torchrun" in " ".join(launch_command(other, run, "logs")), "read when torch is imported"
    wide = small.recipe("asked", "cluster.gpus_per_node=2", "parallelism.tensor=2")
    assert not is_alone(wide) and "torchrun" in " ".join(launch_command(wide, run, "logs"))


def rank_of(logs: Path) -> int:
    """The rank's process, by where its output goes."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            output = (process / "fd" / "1").readlink()
            if output == logs / "stdout.log":
                return int(process.name)
    raise AssertionError(f"no process writes {logs}")


def test_a_forked_rank_is_stopped_resumed_and_killed_as_torchruns_are(
    make_small: Callable[[int], Small],
) -> None:
    """The same steps as an ordinary rank's; SIGTERM saves and ends well, a killed rank is an error."""
    small = make_small(20)
    recipe, plain = (small.recipe(name, "checkpoint.interval=1000") for name in ("forked", "plain"))
    run = RunFolder(recipe.run_folder)
    words = [EMMA, "train", str(small.folder / "small.yaml"), "name=forked", "checkpoint.interval=1000"]
    words.append(f"start={{mode: weights, checkpoint: '{small.base}'}}")

    def until(met: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not met():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    with forking(rank_environment(recipe)) as variables:

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(words, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True)

        process = start()
        until(lambda: max(losses(run), default=0) >= 2, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        reached = run.latest_step()
        assert 2 <= reached < 20 and run.claims.writer() is None

        process = start()
        until(lambda: max(losses(run), default=0) > reached, process)
        os.kill(rank_of(run.logs / "launch-0002"), signal.SIGKILL)
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None and "ended before it was done" in process.stderr.read()
        assert run.latest_step() == reached

        assert start().wait(timeout=240) == 0
    assert not (run.logs / "launch-0003" / "launcher.log").read_text()
    assert losses(run) == losses(train_run(plain))
