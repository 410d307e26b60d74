"""Stopping, killing and continuing, with Megatron's real loop on the CPU.

Launches are what costs time here, so each of them serves several assertions: one run is stopped, killed and
damaged in turn, and compared with the uninterrupted one after every launch.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.recipes.schema import Recipe
from emma.slurm.watch import silence
from emma.tools.runs.checkpoints import COMPLETE_MARK, checkpoint_folder, complete_steps
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import rank_environment
from tests.ranks import Job, start_ranks
from tests.tools.training.conftest import Small
from tests.training_run import losses, rank, start_run, train_run, validation

STEPS = 20
TWO = ("cluster.gpus_per_node=2", "parallelism={tensor: 2}")
READERS = "megatron_args={num-workers: 2}"
NO_SAVES = "checkpoint.interval=1000"


@pytest.fixture(scope="module")
def whole(make_small: Callable[[int], Small]) -> RunFolder:
    """The uninterrupted run, tensor-parallel over two ranks."""
    keep = "checkpoint={interval: 5, keep: 1, keep_every: 10}"
    return train_run(make_small(STEPS).recipe("whole", *TWO, keep))


def at_step(job: Job, step: int, ranks: int) -> None:
    """Waits until the last rank has logged a step."""
    job.wait_for(f"iteration {step:8d}/", rank=ranks - 1, timeout=120)


def children(pid: int) -> list[str]:
    """Processes that a rank has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def kill_during_the_save_of(step: int, job: Job, run: RunFolder) -> None:
    """SIGKILL to all ranks after the first byte of a checkpoint and before its mark."""
    folder = checkpoint_folder(run.fence(run.read_launch()).saves, step)
    deadline = time.monotonic() + 120
    while not folder.is_dir():
        assert not job.exit_codes and time.monotonic() < deadline, job.output(0)
        time.sleep(0.001)
    job.signal(signal.SIGKILL)
    assert all(outcome.exit_code == -signal.SIGKILL for outcome in job.outcomes(timeout=60))
    assert folder.is_dir() and not (folder / COMPLETE_MARK).exists(), "the save was over before the kill"


def same_so_far(run: RunFolder, whole: RunFolder) -> int:
    """Asserts that every logged loss is the uninterrupted run's to the last digit; returns how many there
    are."""
    ours, theirs = losses(run), losses(whole)
    assert ours == {step: theirs[step] for step in ours}
    return len(ours)


def test_retention_keeps_what_the_recipe_says(whole: RunFolder) -> None:
    assert complete_steps(whole.checkpoints) == [10, 20]


def test_sigterm_sigkill_and_damage_change_no_loss(
    whole: RunFolder, make_small: Callable[[int], Small], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM saves; SIGKILL in a save loses the steps since the one before; a checkpoint cut in half is
    passed over. Worker processes read the samples, of the uninterrupted run each rank itself."""
    recipe = make_small(STEPS).recipe("broken", *TWO, READERS)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 6, 2)
    assert all(len(children(pid)) >= 2 for pid in job.pids)
    for pid in job.pids:  # as Slurm does, to a rank and to its worker processes
        os.killpg(pid, signal.SIGTERM)
    assert [outcome.exit_code for outcome in job.outcomes(timeout=120)] == [0, 0]
    state = read_json(run.read_launch().state_file)
    stopped = state["step"]
    assert state["state"] == "stopped" and 6 <= stopped < 10
    assert complete_steps(run.checkpoints) == [5, stopped]

    job = start_run(recipe)
    assert run.read_launch().load.step == stopped
    kill_during_the_save_of(10, job, run)
    assert not run.read_launch().state_file.exists() and complete_steps(run.checkpoints) == [5, stopped]
    assert same_so_far(run, whole) == 10

    shard = next(checkpoint_folder(run.checkpoints, stopped).glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    capsys.readouterr()
    train_run(recipe)
    assert run.read_launch().load.step == 5
    said = capsys.readouterr().err
    assert f"checkpoint iter_{stopped:07d} is set aside: {shard.name} has" in said
    assert same_so_far(run, whole) == STEPS
    assert validation(run)[STEPS] == validation(whole)[STEPS]


def killed_and_resumed(recipe: Recipe, kill: Callable[[Job, RunFolder], None]) -> RunFolder:
    run = RunFolder(recipe.run_folder)
    kill(start_run(recipe), run)
    return train_run(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sigkill_at_a_random_moment(seed: int, whole: RunFolder, make_small: Callable[[int], Small]) -> None:
    """Between two steps, or wherever in a step, a validation or a save the moment falls."""
    generator = random.Random(seed)
    # Far enough from the end that a fast machine has not finished by then.
    step, wait = generator.randrange(1, STEPS - 7), generator.uniform(0, 0.3)

    def kill(job: Job, run: RunFolder) -> None:
        at_step(job, step, 2)
        time.sleep(wait)
        job.signal(signal.SIGKILL, rank=seed % 2)
        assert any(outcome.exit_code == -signal.SIGKILL for outcome in job.outcomes(timeout=120))

    run = killed_and_resumed(make_small(STEPS).recipe(f"killed-{seed}", *TWO), kill)
    assert same_so_far(run, whole) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 20])
def test_sigkill_during_the_first_and_the_last_save(
    step: int, whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe(f"killed-in-save-{step}", *TWO)
    run = killed_and_resumed(recipe, lambda job, run: kill_during_the_save_of(step, job, run))
    assert same_so_far(run, whole) == STEPS and complete_steps(run.checkpoints) == [5, 10, 15, 20]


def test_another_layout_continues_within_tolerance_after_a_teammate_stopped_the_run(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """TP2 → PP2. The files `save` and `stop` in the run folder ask for one more checkpoint, and for the
    end."""
    recipe = make_small(STEPS).recipe("moved", *TWO, NO_SAVES)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 2, 2)
    run.save_request.touch()
    while run.save_request.exists():
        assert len(job.exit_codes) == 0
        time.sleep(0.05)
    saved = complete_steps(run.checkpoints)
    assert len(saved) == 1
    run.stop_request.touch()
    assert [outcome.exit_code for outcome in job.outcomes(timeout=120)] == [0, 0]
    reached = complete_steps(run.checkpoints)[-1]
    assert saved[0] < reached < STEPS
    with pytest.raises(UserError, match="stop asks this run to stop"):
        run.prepare(recipe, take_over=True)
    run.stop_request.unlink()
    layout = ("cluster.gpus_per_node=2", "parallelism={pipeline: 2}")
    train_run(make_small(STEPS).recipe("moved", *layout, NO_SAVES))
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)


@pytest.mark.slow
def test_three_layouts_of_four_ranks_give_the_same_losses(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """TP2·PP2 → TP1·PP1·DP4 → TP2·PP1·DP2, each from the checkpoint that the one before left, the second by
    SIGKILL."""
    small = make_small(STEPS)
    layouts = [
        ("{tensor: 2, pipeline: 2, sequence: true}", 7, signal.SIGTERM),
        ("{}", 13, signal.SIGKILL),
        ("{tensor: 2}", None, None),
    ]
    for parallelism, stop, kind in layouts:
        recipe = small.recipe("four", "cluster.gpus_per_node=4", f"parallelism={parallelism}")
        if stop is None or kind is None:
            train_run(recipe)
            continue
        job = start_run(recipe)
        at_step(job, stop, 4)
        job.signal(kind)
        expected = 0 if kind == signal.SIGTERM else -kind
        assert all(outcome.exit_code == expected for outcome in job.outcomes(timeout=120))
    run = RunFolder(recipe.run_folder)
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)


def test_phase_and_weights_take_the_schedule_from_the_recipe_and_a_phase_keeps_the_moments(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """Both from step 10 of another run. With fresh moments the first update is another one, so the second
    loss tells."""
    changed = (*TWO, NO_SAVES, "validation.groups=[]", "schedule.steps=6", "schedule.warmup_steps=0")
    rates = ("schedule.learning_rate=3.5e-3", "schedule.min_learning_rate=2e-5")
    start = f"checkpoint: '{whole.path}', step: 10"
    small = make_small(STEPS)
    phase = train_run(small.recipe("phase", *changed, *rates, f"start={{mode: phase, {start}}}"))
    weights = train_run(small.recipe("again", *changed, *rates, f"start={{mode: weights, {start}}}"))
    for run in (phase, weights):
        rows = read_metrics(run.metrics_file)[0]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        # The checkpoint's own schedule was in the middle of its decay from 3e-3 to 1e-4.
        assert rows[0]["learning_rate"] == pytest.approx(3.5e-3) == max(row["learning_rate"] for row in rows)
        assert rows[-1]["learning_rate"] < 1e-3
        assert rows[0]["consumed_samples"] == 8
        # The weights were kept: the first loss is far below the base model's.
        assert rows[0]["loss"] < losses(whole)[1] - 0.1
    assert losses(phase)[1] == pytest.approx(losses(weights)[1], abs=1e-6)
    assert abs(losses(phase)[2] - losses(weights)[2]) > 1e-3


def test_a_displaced_launch_writes_nothing_and_ends(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """A rank is stopped in the middle of training, another launch takes the run over and finishes it, and the rank
    goes on."""
    recipe = make_small(STEPS).recipe("taken", *TWO)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 2, 2)
    job.signal(signal.SIGSTOP, rank=0)
    train_run(recipe)
    before = everything(run)
    job.signal(signal.SIGCONT, rank=0)
    outcomes = job.outcomes(timeout=120)
    assert all(outcome.exit_code != 0 for outcome in outcomes)
    assert any(
        "launch 2 (" in outcome.output and "took this run over" in outcome.output for outcome in outcomes
    )
    assert everything(run) == before
    assert same_so_far(run, whole) == STEPS and complete_steps(run.checkpoints) == [5, 10, 15, 20]


def everything(run: RunFolder) -> dict[str, str]:
    """Checksums of all files of a run, without the logs of its launches."""
    paths = (path for path in run.path.rglob("*") if path.is_file() and run.logs not in path.parents)
    return {str(path.relative_to(run.path)): sha256_file(path) for path in paths}


POINTS = ("written", "log found", "log opened", "saved", "marked", "in place", "taken", "doomed")


def rank_that_stops(folder: str, point: str, kind: int) -> None:
    """A rank that gets a signal the second time it reaches a point, or the first where it comes late."""
    from emma.tools.runs import fence
    from emma.tools.training.session import marks

    passed = 0

    def at(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == (2 if point == "log opened" else 1):
            print(f"at {point}", flush=True)
            os.kill(os.getpid(), kind)

    fence.at = marks.at = at
    rank(folder)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", [signal.SIGSTOP, signal.SIGKILL])
def test_chaos_at_every_point_of_the_ranks(
    kind: signal.Signals, whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """One launch after the other is stopped (or killed) at another point, and the next takes the run over. Woken at
    the end, they write nothing. Points of the launcher: `tests/tools/runs/test_fence_model.py`."""
    keep = "checkpoint={interval: 2, keep: 1}"
    recipe = make_small(STEPS).recipe(f"chaos-{kind.name}", *TWO, keep)
    run, jobs = RunFolder(recipe.run_folder), list[Job]()
    for point in POINTS:
        if point == "taken":  # only where a checkpoint is damaged: the model's
            continue
        env = rank_environment(recipe) | run.prepare(recipe, take_over=True).environment
        jobs.append(start_ranks(rank_that_stops, 2, str(run.path), point, int(kind), env=env))
        deadline = time.monotonic() + 240
        while not any(f"at {point}\n" in jobs[-1].output(each) for each in (0, 1)):
            assert time.monotonic() < deadline, (point, jobs[-1].output(0)[-2000:])
            time.sleep(0.1)
    train_run(recipe)
    before = everything(run)
    for job in jobs:
        job.signal(signal.SIGCONT)
        assert any(outcome.exit_code != 0 for outcome in job.outcomes(timeout=120))
    assert everything(run) == before
    assert same_so_far(run, whole) == STEPS and complete_steps(run.checkpoints) == [STEPS]


@pytest.mark.slow
def test_a_hang_while_importing_shows_in_the_heartbeat(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(STEPS).recipe("hanging", *TWO)
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe, take_over=True)
    job = start_ranks(rank_that_hangs, 2, str(run.path), env=rank_environment(recipe) | launch.environment)
    deadline = time.monotonic() + 120
    while silence(recipe, launch).phase != "start-up":
        assert time.monotonic() < deadline, job.output(0)
        time.sleep(0.1)
    time.sleep(2)
    found = silence(recipe, launch)
    assert found.seconds >= 2 and not found.stalled and found.limit == recipe.cluster.slurm.startup_seconds
    assert silence(recipe, launch, now=time.time() + found.limit).stalled
    job.signal(signal.SIGUSR1)
    job.wait_for("rank_that_hangs", timeout=30)
    job.signal(signal.SIGKILL)
    job.outcomes(timeout=60)


def rank_that_hangs(folder: str) -> None:
    """Never comes out of an import."""
    from emma import megatron_patches

    megatron_patches.apply = lambda: time.sleep(600)  # type: ignore[assignment, return-value]
    rank(folder)
