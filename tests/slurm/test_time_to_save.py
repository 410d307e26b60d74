"""What is said at submission about the time to save, and what a real scancel then leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from emma.tools.runs.run_folder import RunFolder
from tests.slurm.real_run import make_run
from tests.slurm.two_nodes import TwoNodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

# Steps of ten to twenty seconds: longer than the shortest KillWait, shorter than the longest.
SLOW = (
    "cluster={nodes: 1, gpus_per_node: 1, device: cpu}",
    "cluster.slurm.preflight=false",
    "model.layers=12",
    "batch.micro=1",
    "batch.global=160",
    "schedule.steps=10",
    "checkpoint.interval=100",
    "validation.interval=100000",
)
# A step on a busy machine may take so many times as long as the median, or so many times less.
VARIES = 1.5


@pytest.fixture
def kill_wait(slurm: TwoNodes) -> Iterator[None]:
    """Puts KillWait back."""
    yield
    slurm.cancel_all()
    slurm.configure("KillWait", "5")


@pytest.mark.slow
@pytest.mark.usefixtures("kill_wait")
def test_what_is_said_at_submission_is_what_scancel_leaves(slurm: TwoNodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, "timed", 200, slurm)

    def cancel_in_a_step() -> str:
        """What was said about scancel; cancels once a launch has logged two steps, the first of which says little about
        others, so that a third one has just begun."""
        before = len(run.logged()) if (run.folder / "metrics.jsonl").exists() else 0
        said = run.submit(*SLOW[:1], "--only", "train", *SLOW[1:])
        run.wait_until_logged_more(before + 1, 600)
        run.cancel()
        slurm.wait(lambda: not slurm.command("squeue", "--noheader").strip(), "the job is gone", 180)
        return next(line for line in said.splitlines() if "scancel: " in line)

    assert "no step was measured or planned" in cancel_in_a_step()
    folder, told = RunFolder(run.folder), []
    for wait in (5, 30, 120):
        slurm.configure("KillWait", str(wait))
        saved = folder.latest_step()
        said = cancel_in_a_step()
        assert f"scancel: {wait} s to save (KillWait {wait} s)" in said and "measured" in said
        needs = re.search(r"take ([\d.,]+) s", said)
        assert needs is not None
        seconds, fits = float(needs[1].replace(",", "")), "they fit" in said
        assert fits == (seconds <= wait) and fits != ("up to 100 steps are lost" in said), said
        if wait / VARIES < seconds < wait * VARIES:
            continue
        told.append((wait, fits))
        assert (folder.latest_step() == run.step() > saved) == fits, f"{said}\n{run.logs()}"
        assert fits or folder.latest_step() == saved < run.step(), f"{said}\n{run.logs()}"
    assert (5, False) in told and (120, True) in told, "steps were neither too long nor too short to tell"
