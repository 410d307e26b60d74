from __future__ import annotations

import dataclasses
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.schema.slurm import Slurm
from emma.tools.corpus.build import build_corpus
from emma.tools.corpus.slurm import SlurmBuild, submit
from emma.tools.corpus.verify import verify_corpus
from tests.slurm.two_nodes import CPUS, NODES, TwoNodes
from tests.tools.corpus.raw_text import contents
from tests.tools.corpus.test_build import mixed_build


@pytest.fixture
def one_core_each(slurm: TwoNodes) -> Iterator[None]:
    """Takes all but one core of each node, so that two tasks of an array run on two nodes."""
    hold = ("sbatch", "--parsable", f"--cpus-per-task={CPUS - 1}", "--output=/dev/null", "--wrap=sleep 3600")
    held = [slurm.command(*hold, f"--nodelist={node}").strip() for node in NODES]
    yield
    slurm.command("scancel", *held)


def wait_for(job: str, seconds: float) -> None:
    """Until a job has left the queue."""
    end = time.monotonic() + seconds
    while subprocess.run(
        ["squeue", "-h", "-j", job, "-t", "PD,R,CG,CF"], capture_output=True, text=True
    ).stdout.strip():
        if time.monotonic() > end:
            pytest.fail(subprocess.run(["squeue", "-a"], capture_output=True, text=True).stdout)
        time.sleep(0.5)


@pytest.mark.slurm
@pytest.mark.usefixtures("one_core_each")
def test_two_nodes_write_what_one_machine_writes(
    slurm: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    here = mixed_build(tmp_path, tmp_path / "here")
    here = dataclasses.replace(here, corpus=here.corpus.model_copy(update={"memory_gib": 0.5}))
    there = dataclasses.replace(here, root=tmp_path / "there")
    settings = SlurmBuild(tasks=2, concurrent=None, time="00:30:00", cluster=Slurm(partition="main"))
    jobs = submit(there, settings)
    assert [(job["stage"], job["phase"]) for job in jobs] == [
        ("integrated", "read"),
        ("integrated", "write"),
        ("integrated", "close"),
        ("filtered", "index"),
        ("filtered", "filter"),
        ("filtered", "close"),
        ("deduplicated", "keys"),
        ("deduplicated", "number"),
        ("deduplicated", "exact"),
        ("deduplicated", "alive"),
        ("deduplicated", "compare"),
        ("deduplicated", "sets"),
        ("deduplicated", "verify"),
        ("deduplicated", "decide"),
        ("deduplicated", "resolve"),
        ("deduplicated", "select"),
        ("deduplicated", "close"),
        ("split", "hash"),
        ("split", "write"),
        ("split", "close"),
    ]
    build_corpus(here)
    wait_for(jobs[-1]["job"], 900)
    shown = slurm.command("scontrol", "--oneliner", "show", "job", jobs[0]["job"])
    assert set(re.findall(r" NodeList=(\S+)", shown)) == set(NODES)
    logs = "\n".join(path.read_text() for path in sorted((there.root / "logs").rglob("*.out")))
    assert verify_corpus(there, contents=True) == [], logs[-4000:]
    written = {name: value for name, value in contents(there.root).items() if not name.startswith("logs/")}
    assert written == contents(here.root)
    assert submit(there, settings) == []


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    build = mixed_build(tmp_path, tmp_path / "corpus")
    with pytest.raises(UserError, match="no Slurm here"):
        submit(build, SlurmBuild(1, None, "00:10:00", Slurm()))
    assert not build.root.exists()
