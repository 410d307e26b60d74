"""`emma train` as a user runs it: torchrun, real processes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.training.conftest import Small
from tests.training_run import losses
from tools.training.run_folder import RunFolder

EMMA = [sys.executable, "-m", "tools.cli"]


def emma(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EMMA, *arguments], capture_output=True, text=True, cwd=cwd, timeout=600)


def overrides(small: Small, name: str) -> list[str]:
    start = f"start={{mode: weights, checkpoint: '{small.base}'}}"
    return [str(small.folder / "small.yaml"), f"name={name}", start]


def test_stop_and_go_on(make_small: Callable[[int], Small]) -> None:
    """Two ranks over torchrun; SIGTERM to `emma train` saves and exits 0, and the same command goes on."""
    small = make_small(20)
    command = ["train", *overrides(small, "command"), "cluster.gpus_per_node=2", "parallelism.tensor=2"]
    run = RunFolder(small.folder / "runs" / "command")
    log = small.folder / "first.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*EMMA, *command], stdout=output, stderr=subprocess.STDOUT, cwd=small.folder
        )
        deadline = time.monotonic() + 240
        while max(losses(run), default=0) < 5:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
    reached = run.latest_step()
    assert 5 <= reached < 20
    assert f"stopped at step {reached} of 20" in log.read_text()
    assert not run.writer_file.exists()
    second = emma(*command, cwd=small.folder)
    assert second.returncode == 0, second.stderr
    assert "finished at step 20" in second.stdout and sorted(losses(run)) == list(range(1, 21))
    third = emma(*command, cwd=small.folder)
    assert third.returncode == 0 and "nothing to do" in third.stdout


def test_a_failing_rank_is_one_message(make_small: Callable[[int], Small]) -> None:
    """A damaged base fails in the ranks; the user sees why and where the logs are."""
    small = make_small(10)
    damaged = small.folder / "damaged"
    subprocess.run(["cp", "-r", str(small.base), str(damaged)], check=True)
    shard = max(damaged.rglob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[:4096] = os.urandom(4096)
    shard.write_bytes(content)
    name, run_file = "damaged", str(small.folder / "small.yaml")
    result = emma(
        "train",
        run_file,
        f"name={name}",
        f"start={{mode: weights, checkpoint: '{damaged}'}}",
        cwd=small.folder,
    )
    assert result.returncode == 1
    assert "error: training failed" in result.stderr and "End of" in result.stderr
    assert not (small.folder / "runs" / name / "writer.json").exists()


def test_print_command_and_dry_run_start_nothing(make_small: Callable[[int], Small]) -> None:
    small = make_small(10)
    shown = emma("train", *overrides(small, "shown"), "--print-command", cwd=small.folder)
    assert shown.returncode == 0, shown.stderr
    assert "torch.distributed.run" in shown.stdout and "--num-layers" in shown.stdout
    dry = emma("train", *overrides(small, "shown"), "--dry-run", cwd=small.folder)
    assert dry.returncode == 0 and "80 samples of 32 tokens" in dry.stdout
    assert not (small.folder / "runs" / "shown").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.steps=11", "steps × batch.global = 11 × 8 = 88 samples, but .* holds 80"),
        ("batch.sequence_length=64", "64, but .* was built for 32"),
        ("validation.groups=[nowhere]", "`nowhere` is no group"),
        ("data.name=other", "the mix does not exist. Fix: `emma mix build"),
        ("start={mode: weights, checkpoint: nowhere}", "start.checkpoint: nowhere does not exist"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_ranks_start(
    override: str, message: str, make_small: Callable[[int], Small]
) -> None:
    import re

    small = make_small(10)
    result = emma("train", *overrides(small, "refused"), override, cwd=small.folder)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not (small.folder / "runs" / "refused" / "checkpoints").exists()
