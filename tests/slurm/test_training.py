"""Training on a real Slurm with two nodes: signals, lost ranks and lost nodes, and always the same losses at the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.history import History
from tests.slurm.real_run import RealRun, make_run
from tests.slurm.two_nodes import TwoNodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]

RANKS = 2  # a node
TWO_NODES = "cluster={nodes: 2, gpus_per_node: 2, device: cpu, launcher: srun}"
ONE_NODE = "cluster={nodes: 1, gpus_per_node: 2, device: cpu}"
LAYOUT = "batch.micro=2"
# Long enough for the time limits below, short enough to wait for.
LONG, SHORT = 2000, 120

MakeRun = Callable[..., RealRun]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def make(folder: Path, slurm: TwoNodes) -> Iterator[MakeRun]:
    """Submits a run of some steps under a name."""

    def submit(name: str, steps: int, cluster: str, *overrides: str) -> RealRun:
        run = make_run(folder / f"steps-{steps}", name, steps, slurm)
        run.submit(cluster, "--only", "train", LAYOUT, *overrides)
        return run

    yield submit
    slurm.cancel_all()


@pytest.fixture(scope="module")
def whole(make: MakeRun) -> RealRun:
    """The short run on two nodes, not interrupted."""
    run = make("whole", SHORT, TWO_NODES, "checkpoint.interval=30")
    run.wait_until_finished(900)
    assert run.restarts() == [0]
    return run


@pytest.fixture(scope="module")
def whole_on_one_node(make: MakeRun) -> RealRun:
    run = make("whole-one", SHORT, ONE_NODE, "checkpoint.interval=30")
    run.wait_until_finished(900)
    return run


def test_the_signal_before_the_time_limit_saves_and_the_requeued_job_finishes(make: MakeRun) -> None:
    limits = "cluster.slurm.time_limit=00:03:00", "cluster.slurm.signal_seconds=45"
    cut = make("cut", LONG, TWO_NODES, "batch.micro=1", "checkpoint.interval=100000", *limits)
    cut.wait_until_finished(1500)
    events = [event for event in History(cut.folder).events() if event["event"] == "ended"]
    assert len(events) > 1 and all(event["exit_code"] == 0 for event in events), "it was saved, not killed"
    assert 0 < events[0]["step"] < LONG and cut.restarts()[:2] == [0, 1]
    reference = make("uncut", LONG, TWO_NODES, "batch.micro=1", "checkpoint.interval=100000")
    reference.wait_until_finished(1200)
    assert reference.restarts() == [0]
    assert cut.losses() == reference.losses() and len(cut.losses()) == LONG
    logs = sorted((cut.folder / "logs" / "slurm").glob("train-*.log"))
    assert len(logs) == 1 and logs[0].read_text().count("(restart ") == len(events), "logs are appended to"


def test_a_killed_rank_ends_the_step_at_once_and_the_run_goes_on(
    make: MakeRun, whole: RealRun, slurm: TwoNodes
) -> None:
    run = make("killed", SHORT, TWO_NODES, "checkpoint.interval=30")
    run.wait_for_step(40, 600)
    ranks = slurm.processes("n2", "tools.training.worker", str(run.folder))
    assert len(ranks) == RANKS
    os.kill(ranks[0], signal.SIGKILL)
    slurm.wait(lambda: any(event["event"] == "ended" for event in run.events()), "the link ended", 60)
    run.wait_until_finished(900)
    ended = [event for event in run.events() if event["event"] == "ended"]
    assert ended[0]["exit_code"] != 0 and ended[0]["step"] >= 30 and ended[-1]["exit_code"] == 0
    assert run.losses() == whole.losses()


def test_a_lost_node_requeues_the_run(make: MakeRun, whole: RealRun, slurm: TwoNodes) -> None:
    run = make("lost", SHORT, TWO_NODES, "checkpoint.interval=30")
    run.wait_for_step(40, 600)
    slurm.lose_node("n2", ranks=True)
    slurm.wait(lambda: run.state() == "PENDING", "Slurm noticed that the node is gone", 90)
    slurm.start_node("n2")
    run.wait_until_finished(900)
    assert run.losses() == whole.losses()


def test_ranks_of_a_lost_node_that_live_on_write_no_more(
    make: MakeRun, whole_on_one_node: RealRun, slurm: TwoNodes
) -> None:
    run = make("zombie", SHORT, ONE_NODE, "checkpoint.interval=30")
    run.wait_for_step(30, 600)
    node = run.node()
    slurm.lose_node(node, ranks=False)
    alive = slurm.processes(node, "tools.training.worker", str(run.folder))
    assert len(alive) == RANKS, "the ranks live on without their slurmd"
    # While nobody watches them they go on training: hold them, so that they are still at it when the run moves.
    for pid in alive:
        os.kill(pid, signal.SIGSTOP)
    slurm.wait(lambda: len(run.launches()) == 2, "the run began on the other node", 120)
    written = run.metrics_of_launch(2)
    for pid in alive:
        os.kill(pid, signal.SIGCONT)
    slurm.wait(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in alive), "the old ranks stopped", 120)
    assert "it took this run over" in run.rank_log(1)
    run.wait_until_finished(900)
    assert run.launches() == [1, 2] and run.node_of_launch(2) != node
    assert written <= run.metrics_of_launch(2)
    assert run.losses() == whole_on_one_node.losses()
    slurm.start_node(node)


def test_two_submissions_start_one_writer(make: MakeRun, slurm: TwoNodes) -> None:
    run = make("twice", SHORT, ONE_NODE)
    again = run.submit(ONE_NODE, "--only", "train", LAYOUT)
    assert "in the queue" in again and "submitted" not in again
    run.cancel()
