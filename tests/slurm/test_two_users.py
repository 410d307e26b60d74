"""Two accounts of this machine that share a run and a store, on a Slurm that shows nobody the other's jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from emma.slurm.history import History
from tests.accounts import accounts, python_for_all
from tests.slurm.real_run import RealRun, make_run
from tests.slurm.two_nodes import TwoNodes, running_nodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

USERS = ("emma_a", "emma_b")
TEAM = "emma_team"
STEPS = 20
OPTIONS = (
    "cluster={nodes: 1, gpus_per_node: 1, device: cpu}",
    "cluster.slurm={exclusive: false, time_limit: '00:40:00', signal_seconds: 60, preflight: false}",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    # Where every user may look: pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with running_nodes(Path(name), settings={"PrivateData": "jobs"}) as nodes:
            yield nodes


@pytest.fixture(scope="module")
def tools() -> Iterator[Path]:
    """A Python that both users may run."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        python_for_all(Path(name))
        yield Path(name)


@pytest.fixture
def team(cluster: TwoNodes) -> Iterator[Path]:
    """A folder of both users, with a run whose store and mix are still to be made."""
    with tempfile.TemporaryDirectory() as name, accounts(*USERS, group=TEAM):
        Path(name).chmod(0o755)
        folder = Path(name) / "team"
        folder.mkdir()
        make_run(folder, "shared", STEPS, cluster)
        for made in ("store", "mix"):
            shutil.rmtree(folder / made)
        subprocess.run(["chgrp", "--recursive", TEAM, str(folder)], check=True)
        subprocess.run(["chmod", "--recursive", "g+rwX", str(folder)], check=True)
        subprocess.run(["find", str(folder), "-type", "d", "-exec", "chmod", "g+s", "{}", "+"], check=True)
        yield folder


def start(cluster: TwoNodes, tools: Path, team: Path, user: str, *arguments: str) -> subprocess.Popen[str]:
    """`emma slurm submit small.yaml ... --to train` by a user."""
    environment = {
        "SLURM_CONF": str(cluster.configuration),
        "PATH": f"{tools}/venv/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{tools}/python/lib",
        "EMMA_CACHE": str(team / "cache"),
        "USER": user,
    }
    command = [
        str(tools / "venv/bin/python"),
        "-P",
        "-m",
        "emma.cli",
        "slurm",
        "submit",
        "small.yaml",
        "--to",
        "train",
    ]
    return subprocess.Popen(
        [*command, *OPTIONS, *arguments],
        cwd=team, env=environment, user=user, group=user, extra_groups=[TEAM], umask=0o022,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def submit_at_once(cluster: TwoNodes, tools: Path, team: Path, names: tuple[str, str]) -> list[str]:
    """What both were told; waits until their jobs have ended."""
    running = [
        start(cluster, tools, team, user, f"name={name}") for user, name in zip(USERS, names, strict=True)
    ]
    said = [process.communicate(timeout=180)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    cluster.wait(lambda: not cluster.command("squeue", "--noheader").strip(), "the jobs end", 600)
    return said


def unusable(folder: Path, user: str) -> list[str]:
    """Files and folders that a user cannot read, or could not change."""
    command = ["find", str(folder), "(", "!", "-readable", "-o", "!", "-writable", ")", "-not", "-type", "l"]
    found = subprocess.run(
        command, user=user, group=user, extra_groups=[TEAM], capture_output=True, text=True, check=False
    )
    return found.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make accounts")
@pytest.mark.parametrize("names", [("shared", "shared"), ("one", "two")], ids=["one run", "one store"])
def test_every_stage_runs_once_and_both_see_who_works(
    names: tuple[str, str], cluster: TwoNodes, tools: Path, team: Path
) -> None:
    said = submit_at_once(cluster, tools, team, names)
    logs = "\n".join(f"== {p}\n{p.read_text()}" for p in sorted(team.glob("runs/*/logs/slurm/*.log")))
    assert (team / "mix" / "tiny" / "manifest.json").is_file(), "\n".join([*said, logs])
    events = [event for name in set(names) for event in History(team / "runs" / name).events()]
    submitted = sorted(event["stage"] for event in events if event["event"] == "submitted")
    assert submitted == ["mix", "pack", *["train"] * len(set(names))], "\n".join(said)
    for name in set(names):
        run = RealRun(cluster, team, name)
        assert run.step() == STEPS, "\n".join([*said, run.logs()])
        assert run.logged() == list(range(1, STEPS + 1))
    assert sum(event["event"] == "began" for event in events) == len(set(names)), "each run was trained once"
    first, second = sorted(range(2), key=lambda index: "submitted pack" not in said[index])
    assert "submitted pack" in said[first] and "submitted pack" not in said[second]
    assert f"of {USERS[first]}, submitted on" in said[second], "the second is told who works"
    for user in USERS:
        assert not unusable(team, user)
    again = start(cluster, tools, team, USERS[second], f"name={names[second]}").communicate(timeout=120)[0]
    assert "pack      done" in again and "train     done" in again and "nothing to submit" in again
