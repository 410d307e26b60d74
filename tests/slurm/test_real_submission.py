"""What a real sbatch makes of a submission."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.real_run import RealRun, emma, make_run
from tests.slurm.two_nodes import TwoNodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

NASTY = """it's "a" $HOME `id` # ; & é"""
BOTH = "cluster={nodes: 2, gpus_per_node: 1, device: cpu, launcher: srun}"


def test_values_reach_slurm_as_they_are(slurm: TwoNodes, tmp_path: Path) -> None:
    make_run(tmp_path, "odd", 20, slurm)
    run = RealRun(slurm, tmp_path, "odd")
    # A job that waits for a moment far away, so that its options can be read.
    later = "cluster.slurm.sbatch=['--begin=now+1hour']"
    said = run.submit(BOTH, "--only", "train", later, f"paths.runs={json.dumps(str(tmp_path / NASTY))}")
    job = said.split(" job ")[1].split(",")[0]
    folder = tmp_path / NASTY / "odd"
    shown = slurm.command("squeue", "--noheader", f"--job={job}", "--format=%k").rstrip("\n")
    assert shown == f"emma train {folder}"
    record = slurm.command("scontrol", "show", "job", job)
    assert f"StdOut={folder}/logs/slurm/train-{job}.log" in record
    slurm.command("scancel", job)


def test_a_job_waits_for_a_node_that_is_down(slurm: TwoNodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, "patient", 20, slurm)
    slurm.lose_node("n2", ranks=False)
    slurm.wait(lambda: slurm.node_states()["n2"].startswith("down"), "n2 is down", 60)
    try:
        said = run.submit(BOTH, "--only", "train")
        assert "submitted train" in said and run.state() == "PENDING"
    finally:
        slurm.cancel_all()
        slurm.start_node("n2")
        slurm.wait(lambda: slurm.node_states()["n2"] == "idle", "n2 is back", 60)


def test_the_file_that_describes_this_cluster_is_accepted(slurm: TwoNodes, tmp_path: Path) -> None:
    make_run(tmp_path, "described", 20, slurm)
    emma(slurm, tmp_path, "slurm", "site", "init", "--output", "ours.yaml")
    text = (tmp_path / "ours.yaml").read_text()
    assert "partition: main" in text and "KillWait 5 sec" in text and "device: cpu" in text
    said = emma(
        slurm, tmp_path, "slurm", "submit", "small.yaml", "cluster=ours.yaml", "--only", "train", "--dry-run"
    )
    assert "#SBATCH --partition=main" in said and "scancel: 5 s to save (KillWait 5 s)" in said
    with pytest.raises(AssertionError, match="there is no partition `gpu`"):
        emma(slurm, tmp_path, "slurm", "site", "init", "--partition", "gpu")
