"""Real jobs on two nodes that write one store and one mix at the same time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.folders import content
from tests.foreign_packages import write_foreign_packages
from tests.slurm.real_run import emma
from tests.slurm.two_nodes import CPUS, NODES, TwoNodes
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_corpus, tiny_data
from tests.tiny_text import train_tokenizer

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TASKS = 4
PACK = ("pack", "run", "small.yaml", "data.pack.shard_mib=1")
MIX = ("mix", "build", "small.yaml")


def make_run(folder: Path) -> Path:
    """A run whose corpus makes more work units than there are tasks."""
    tokenizer = train_tokenizer(folder / "tokenizer")
    make_tiny_corpus(folder / "corpus", 1500)
    write_small_run(folder, tiny_data().model_dump(mode="json"), tokenizer)
    write_foreign_packages(folder)
    return folder


def submit(slurm: TwoNodes, work: Path, *options: str, command: tuple[str, ...]) -> str:
    """Id of a job that waits for the file `go` and then runs `emma`."""
    words = " ".join([sys.executable, "-P", "-m", "emma.cli", *command])
    script = f"until [ -e {work / 'go'} ]; do sleep 0.1; done; exec {words}"
    log = f"--output={work}/%x-%A-%a.log"
    return slurm.command(
        "sbatch",
        "--parsable",
        f"--chdir={work}",
        log,
        f"--job-name={command[0]}",
        *options,
        f"--wrap={script}",
    ).strip()


def run_together(slurm: TwoNodes, work: Path, jobs: list[str], tasks: int) -> None:
    """Releases jobs once all their tasks run, on both nodes; all must succeed."""

    def running() -> list[str]:
        shown = slurm.command("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%N")
        return shown.split()

    slurm.wait(lambda: len(running()) == tasks, f"{tasks} tasks run", 60)
    assert set(running()) == set(NODES)
    (work / "go").touch()
    slurm.wait(lambda: not slurm.command("squeue", "--noheader").strip(), "they have ended", 180)
    (work / "go").unlink()
    logs = "\n".join(path.read_text() for path in sorted(work.glob("*.log")))
    for job in jobs:
        records = slurm.command("scontrol", "--oneliner", "show", "job", job).splitlines()
        assert all("JobState=COMPLETED" in record and "ExitCode=0:0" in record for record in records), logs


def test_an_array_packs_one_store_and_two_jobs_build_one_mix(slurm: TwoNodes, tmp_path: Path) -> None:
    alone, shared = make_run(tmp_path / "alone"), make_run(tmp_path / "shared")
    emma(slurm, alone, *PACK, "--workers=1")
    emma(slurm, alone, *MIX)

    share = (*PACK, "--workers=2", f"--shard=$SLURM_ARRAY_TASK_ID/{TASKS}")
    half_a_node = f"--cpus-per-task={CPUS // 2}"
    array = submit(slurm, shared, f"--array=0-{TASKS - 1}", half_a_node, command=share)
    run_together(slurm, shared, [array], TASKS)
    for command in ((*PACK, "--finish"), MIX):
        jobs = [submit(slurm, shared, f"--nodelist={node}", command=command) for node in NODES]
        run_together(slurm, shared, jobs, len(NODES))

    assert len(list((alone / "store").glob("*/shard-*.bin"))) > TASKS, "each task had units, in any component"
    for folder in ("store", "mix"):
        assert content(shared / folder) == content(alone / folder)
        assert not list((shared / folder).rglob(".*")), "no lock, no half-written folder stays"
