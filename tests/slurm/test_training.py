"""Training on a real Slurm with two nodes: signals, lost ranks, and lost nodes, with the same final losses
every time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emma.base.files import read_json, sha256_file
from emma.recipes.load import load_recipe
from emma.slurm.watch import silence
from emma.tools.runs.checkpoints import checkpoint_folder, complete_steps
from emma.tools.runs.integrity import verify
from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.real_run import RealRun, emma, make_run
from tests.slurm.two_nodes import NODES, TwoNodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]

RANKS = 2
TWO_NODES = "cluster={nodes: 2, gpus_per_node: 1, device: cpu, launcher: srun}"
ONE_NODE = "cluster={nodes: 1, gpus_per_node: 2, device: cpu}"
# Two ranks either way, so that one uninterrupted run gives the result that all others must reach, and no more: each
# start imports torch and Megatron once a rank, which is most of what these tests cost.
LAYOUT = ("batch.micro=2", "checkpoint.interval=30", "validation.interval=100000")
STEPS = 80
NO_PREFLIGHT = "cluster.slurm.preflight=false"

MakeRun = Callable[..., RealRun]


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def held(pid: int) -> bool:
    """Whether a process is stopped."""
    try:
        return "State:\tT" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, slurm: TwoNodes) -> Iterator[MakeRun]:
    """Submits a run under a name; all share a mix."""
    folder = tmp_path_factory.mktemp("training")

    def submit(name: str, cluster: str, *arguments: str, last: str = "train") -> RealRun:
        run = make_run(folder, name, STEPS, slurm)
        run.submit(cluster, "--from", "train", "--to", last, *LAYOUT, *arguments)
        return run

    yield submit
    slurm.cancel_all()


@pytest.fixture(scope="module")
def whole(make: MakeRun) -> RealRun:
    """An uninterrupted run on two nodes."""
    run = make("whole", TWO_NODES, NO_PREFLIGHT)
    run.wait_until_finished(900)
    assert run.restarts() == [0] and sorted(run.losses()) == list(range(1, STEPS + 1))
    return run


def test_a_run_survives_the_signal_a_killed_rank_and_a_lost_node(
    make: MakeRun, whole: RealRun, slurm: TwoNodes
) -> None:
    limits = "cluster.slurm.signal_seconds=130", "cluster.slurm.attempts=9"
    run = make("struck", TWO_NODES, NO_PREFLIGHT, *limits)

    # Slurm's own signal before the time limit, which is moved close once the run is training. Slurm checks
    # limits twice a minute; until then the ranks are stopped, so that even the fastest machine has steps
    # left. Slurm wakes them.
    run.wait_for_step(10, 600)
    ranks = [pid for node in NODES for pid in run.ranks(node)]
    send(ranks, signal.SIGSTOP)
    run.limit_time(seconds=100)
    slurm.wait(lambda: not any(map(held, ranks)), "Slurm's signal came", 90)
    slurm.wait(lambda: run.state() == "PENDING", "the job saved and requeued itself", 150)
    run.set_time_limit(minutes=40)
    (saved,) = run.events("ended")
    assert len(ranks) == RANKS and saved["exit_code"] == 0, "they saved and left by themselves"
    assert 10 <= saved["step"] == run.step() < STEPS, "no step was lost"

    # One of the ranks is killed: the other ends at once, and the run continues from its checkpoint.
    run.wait_for_step(saved["step"] + 10, 600)
    assert len(run.events("began")) == 2 and run.events("began")[1]["step"] == saved["step"]
    os.kill(run.ranks("n2")[0], signal.SIGKILL)
    slurm.wait(lambda: len(run.events("ended")) == 2, "the other ended", 60)
    assert run.events("ended")[1]["exit_code"] != 0

    # A node is lost together with its ranks.
    slurm.wait(lambda: len(run.events("began")) == 3, "the job began again", 120)
    resumed, before = run.events("began")[2]["step"], len(run.logged())
    assert resumed >= saved["step"]
    run.wait_until_logged(resumed + 10, before, 600)
    slurm.lose_node("n2", ranks=True)
    slurm.wait(lambda: run.state() == "PENDING", "Slurm noticed that the node is gone", 90)
    # Credentials expire sooner here than elsewhere, so a signal for the lost node's ranks that Slurm still tries to
    # deliver, for five minutes, would reach those of the next start. A controller that starts anew has forgotten it.
    slurm.restart_controller()
    assert not slurm.undelivered()
    slurm.start_node("n2")

    run.wait_until_finished(900)
    assert len(run.launches()) == 4, "one start for each blow, and the first"
    assert run.restarts() == list(range(4))
    assert run.losses() == whole.losses()
    logs = sorted((run.folder / "logs" / "slurm").glob("train-*.log"))
    assert len(logs) == 1 and logs[0].read_text().count("(restart ") == len(run.launches()), "appended to"


def test_surviving_ranks_of_a_lost_node_write_no_more(make: MakeRun, whole: RealRun, slurm: TwoNodes) -> None:
    run = make("zombie", ONE_NODE, NO_PREFLIGHT)
    run.wait_for_step(10, 600)
    node = run.node()
    slurm.lose_node(node, ranks=False)
    alive = run.ranks(node)
    assert len(alive) == RANKS, "the ranks live on without their slurmd"
    # Unwatched, they would keep training: stop them, so that they are still running when the run moves.
    send(alive, signal.SIGSTOP)
    slurm.wait(lambda: len(run.launches()) == 2, "the run began on the other node", 120)
    before, resumed = run.logged(), run.events("began")[1]["step"]
    send(alive, signal.SIGCONT)
    slurm.wait(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in alive), "the old ranks stopped", 120)
    assert "which took this run over" in run.rank_log(1)
    written = run.logged()[len(before) :]
    assert written == list(range(resumed + 1, resumed + 1 + len(written))), "only the new ranks wrote"
    slurm.start_node(node)
    run.wait_until_finished(900)
    assert run.launches() == [1, 2] and run.node_of_launch(2) != node
    assert run.losses() == whole.losses()


# More of them with `pytest -m slurm tests/slurm/test_training.py -k importing`.
SEEDS = [pytest.param(seed, marks=() if seed == 0 else pytest.mark.slow) for seed in range(10)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_that_was_stopped_while_importing_writes_nothing(
    seed: int, make: MakeRun, whole: RealRun, slurm: TwoNodes
) -> None:
    """Stopped at a random moment of its start, its node lost, the job requeued on the other node; and woken later."""
    moment = random.Random(seed)
    run = make(f"importing-{seed}", ONE_NODE, NO_PREFLIGHT)
    slurm.wait(lambda: len(run.launches()) == 1, "the run began", 300)
    node = run.node()
    slurm.wait(lambda: len(run.ranks(node)) == RANKS, "the ranks are there", 120)
    time.sleep(moment.uniform(0, 8))
    alive = run.ranks(node)
    send([alive[moment.randrange(RANKS)]], signal.SIGSTOP)
    slurm.lose_node(node, ranks=False)
    slurm.wait(lambda: len(run.launches()) == 2, "the run began on the other node", 300)
    run.wait_for_step(moment.randrange(1, STEPS // 2), 900)
    logs = run.folder / "logs" / "launch-0001"
    before = content(logs, without="rank-")
    # The others have ended by themselves where they had got far enough to look.
    send([pid for pid in alive if Path(f"/proc/{pid}").is_dir()], signal.SIGCONT)
    slurm.wait(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in alive), "the old ranks stopped", 180)
    assert content(logs, without="rank-") == before
    slurm.start_node(node)
    run.wait_until_finished(900)
    assert run.launches() == [1, 2] and run.logged() == list(range(1, STEPS + 1)), "each step once"
    assert run.losses() == whole.losses()
    saved = [event for event in read_lines(run.folder / "checkpoints.jsonl") if event["event"] == "saved"]
    assert saved and {event["launch"] for event in saved} == {2}
    for step in complete_steps(run.folder / "checkpoints"):
        assert verify(checkpoint_folder(run.folder / "checkpoints", step)).state == "verified"


def content(folder: Path, without: str) -> dict[str, str]:
    """Checksums of the files of a folder whose names don't begin so."""
    return {path.name: sha256_file(path) for path in folder.iterdir() if not path.name.startswith(without)}


def test_a_stopped_rank_is_seen_and_the_run_goes_on(make: MakeRun, whole: RealRun, slurm: TwoNodes) -> None:
    limits = "cluster.slurm.stall_seconds=20", "cluster.slurm.startup_seconds=1200"
    told = "cluster.slurm.notify=[{command: 'echo $EMMA_EVENT >>$EMMA_FOLDER/told', events: [stalled, finished]}]"
    run = make("hung", ONE_NODE, NO_PREFLIGHT, *limits, told)
    run.wait_for_step(35, 900)
    pid = run.ranks(run.node())[1]
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    slurm.wait(lambda: bool(run.events("stalled")), "it is seen", 300)
    seen, (stalled,) = time.monotonic() - begun, run.events("stalled")
    # A busy machine saves slowly, and what it has taken so far moves the deadline.
    limit = silence(load_recipe(run.folder), RunFolder(run.folder).read_launch()).limit
    assert stalled["phase"] in ("step", "save") and stalled["seconds"] >= limit >= 20
    assert seen < 2 * limit, "within twice the deadline"
    slurm.wait(lambda: len(run.launches()) == 2, "the ranks start again", 120)
    assert run.restarts() == [0, 0], "in the same job"
    assert "Current thread 0x" in run.rank_log(1) and "training.py" in run.rank_log(1), "stacks"
    run.wait_until_finished(900)
    assert run.losses() == whole.losses()
    assert (run.folder / "told").read_text().split() == ["stalled", "finished"]


@pytest.mark.slow
def test_a_stuck_srun_is_seen_and_the_ranks_start_after_all(make: MakeRun, slurm: TwoNodes) -> None:
    """Another step holds the job's cores: `srun: step creation temporarily disabled, retrying`."""
    limits = "cluster.slurm.startup_seconds=240", "cluster.slurm.cpus_per_rank=4"
    holds = "cluster.slurm.setup=['srun --ntasks=1 --cpus-per-task=4 sleep 3600 &']"
    one_rank = "cluster={nodes: 1, gpus_per_node: 1, device: cpu}"
    run = make("stuck", one_rank, NO_PREFLIGHT, holds, *limits)
    slurm.wait(lambda: len(run.launches()) == 1, "the run began", 300)
    begun = time.monotonic()
    slurm.wait(lambda: bool(run.events("stalled")), "it is seen", 480)
    assert time.monotonic() - begun < 2 * 240
    assert run.events("stalled")[0]["phase"] == "no ranks"
    run.wait_for_step(1, 600)
    assert run.launches() == [1, 2] and run.restarts() == [0, 0]
    assert "tep creation temporarily disabled" in run.logs()
    run.cancel()


def test_a_run_is_stopped_by_a_file_and_goes_on(make: MakeRun, whole: RealRun, slurm: TwoNodes) -> None:
    run = make("halted", ONE_NODE, NO_PREFLIGHT, "--links", "3")
    run.wait_for_step(5, 900)
    said = emma(slurm, run.work, "slurm", "stop", str(run.folder))
    assert "cancelled what was waiting" in said and "stopped; the latest checkpoint is that of step" in said
    (ended,) = run.events("ended")
    assert ended["exit_code"] == 0 and 5 <= ended["step"] < STEPS
    slurm.wait(lambda: not slurm.command("squeue", "--noheader").strip(), "no job is left", 60)
    (run.folder / "stop").unlink()
    # Three links, of which the first finishes the run: the others, and their nodes, are not needed.
    run.submit(ONE_NODE, "--from", "train", "--to", "convert", *LAYOUT, NO_PREFLIGHT, "--links", "3")
    run.wait_for_step(STEPS, 900)
    links = run.jobs()[-4:]
    slurm.wait(lambda: all(run.state(job) == "CANCELLED" for job in links[1:3]), "the others are gone", 60)
    slurm.wait(lambda: run.state(links[3]) in ("RUNNING", "COMPLETED", "FAILED"), "convert starts", 60)
    assert run.losses() == whole.losses()
    slurm.cancel_all()


def test_a_node_that_fails_the_preflight_is_named_and_training_continues_elsewhere(
    make: MakeRun, slurm: TwoNodes, tmp_path: Path
) -> None:
    # The first node to start shows its tasks a temporary folder in which nobody can write.
    prolog, ill = tmp_path / "prolog.sh", tmp_path / "ill"
    prolog.write_text(
        f'#!/bin/bash\n[[ -s {ill} ]] || echo "$SLURMD_NODENAME" >{ill}\n'
        f'[[ $(cat {ill}) != "$SLURMD_NODENAME" ]] || echo "export TMPDIR=/proc"\n'
    )
    prolog.chmod(0o755)
    one_rank = "cluster={nodes: 1, gpus_per_node: 1, device: cpu}"
    run = make("ill", one_rank, f"cluster.slurm.srun=['--task-prolog={prolog}']", last="convert")
    slurm.wait(lambda: len(run.launches()) == 2, "another job began", 180)
    (failed,) = run.events("preflight failed")
    bad = ill.read_text().strip()
    assert failed["nodes"] == {bad: ["/proc: cannot be written: No such file or directory"]}
    first, second = run.events("began")
    assert first["nodes"] == bad != second["nodes"] and first["job"] != second["job"]
    assert run.waits_for(run.jobs("convert")[0]) == f"afterok:{second['job']}", (
        "convert waits for the new job"
    )
    noted = read_json(run.folder / ".train.submitted.json")
    assert str(noted["job"]) == second["job"], "others wait for the new job too"
    slurm.cancel_all()
    log = run.folder / "logs" / "slurm" / f"train-{first['job']}.log"
    assert f"preflight failed on {bad}" in log.read_text()


def test_a_run_that_only_crashes_is_given_up(make: MakeRun, slurm: TwoNodes) -> None:
    srun = "cluster.slurm.srun=['--no-such-option']"
    run = make("crashing", ONE_NODE, NO_PREFLIGHT, srun, "cluster.slurm.attempts=2")
    slurm.wait(lambda: run.state() == "FAILED", "it is given up", 180)
    assert run.restarts() == [0, 1]
    assert "given up: 2 jobs in a row ended at step 0 without a new checkpoint" in run.logs()


def test_two_submissions_start_one_writer(make: MakeRun, slurm: TwoNodes) -> None:
    run = make("twice", ONE_NODE)
    again = run.submit(ONE_NODE, "--only", "train", *LAYOUT)
    assert "in the queue" in again and "submitted" not in again
    run.cancel()
