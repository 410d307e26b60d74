"""Accounts and ended jobs on a real Slurm with accounting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.accounting import ACCOUNT
from tests.slurm.real_run import emma, make_run
from tests.slurm.two_nodes import TwoNodes, running_nodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ONE_RANK = "cluster={nodes: 1, gpus_per_node: 1, device: cpu}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """A separate cluster with a database."""
    with running_nodes(tmp_path_factory.mktemp("accounting"), accounting=True) as nodes:
        yield nodes


def test_accounts_are_checked_and_ended_jobs_are_known(cluster: TwoNodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, "counted", 20, cluster)
    train = (ONE_RANK, "--only", "train")
    said = run.submit(*train, "cluster.slurm.account=project_2", code=2)
    assert f"`project_2` is not one of your accounts. Fix: did you mean `{ACCOUNT}`" in said
    run.submit(*train, f"cluster.slurm.account={ACCOUNT}")
    cluster.wait(lambda: bool(run.launches()), f"it runs\n{run.logs()}", 90)
    run.cancel()
    cluster.wait(lambda: not cluster.command("squeue", "--noheader").strip(), "it is gone", 60)
    state = f"job {run.jobs()[-1]} cancelled"
    cluster.wait(lambda: state in emma(cluster, tmp_path, "slurm", "jobs", "runs"), state, 30)
