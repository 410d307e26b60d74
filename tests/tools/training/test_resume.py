"""Stopping, killing and going on, with Megatron's real loop on CPU."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from recipes.errors import UserError
from recipes.files import read_json, write_json
from tests.ranks import Job
from tests.tools.training.conftest import Small
from tests.training_run import losses, start_run, train_run, validation
from tools.training.checkpoints import checkpoint_folder, complete_steps
from tools.training.metrics import read_metrics
from tools.training.run_folder import RunFolder

STEPS = 20
TWO = ("cluster.gpus_per_node=2", "parallelism={tensor: 2}")


@pytest.fixture(scope="module")
def whole(make_small: Callable[[int], Small]) -> RunFolder:
    """The uninterrupted run, tensor-parallel over two ranks."""
    return train_run(make_small(STEPS).recipe("whole", *TWO))


def at_step(job: Job, step: int, ranks: int) -> None:
    """Waits until the last rank has logged a step."""
    job.wait_for(f"iteration {step:8d}/", rank=ranks - 1, timeout=120)


def test_sigterm_saves_and_the_resumed_run_repeats_every_loss(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe("terminated", *TWO)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 7, 2)
    job.signal(signal.SIGTERM)
    assert [outcome.exit_code for outcome in job.outcomes(timeout=120)] == [0, 0]
    state = read_json(run.state_file)
    assert state["state"] == "stopped" and 7 <= state["step"] < STEPS
    assert complete_steps(run.checkpoints)[-1] == state["step"]
    train_run(recipe)
    assert losses(run) == losses(whole)
    assert validation(run)[STEPS] == validation(whole)[STEPS]


def test_sigkill_loses_only_the_steps_since_the_last_checkpoint(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe("killed", *TWO)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 13, 2)
    job.signal(signal.SIGKILL, rank=0)
    assert any(outcome.exit_code == -signal.SIGKILL for outcome in job.outcomes(timeout=120))
    assert not run.state_file.exists() and complete_steps(run.checkpoints)[-1] in (10, 15)
    train_run(recipe)
    assert losses(run) == losses(whole)


def test_another_layout_goes_on_within_tolerance(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """TP2·PP1·DP2 → TP1·PP2·DP1 → TP1·PP1·DP1, each from the checkpoint that the one before left."""
    small = make_small(STEPS)
    layouts = [(4, "{tensor: 2}", 7), (2, "{pipeline: 2}", 13), (1, "{}", None)]
    for ranks, parallelism, stop in layouts:
        recipe = small.recipe("moved", f"cluster.gpus_per_node={ranks}", f"parallelism={parallelism}")
        if stop is None:
            train_run(recipe)
            continue
        job = start_run(recipe)
        at_step(job, stop, ranks)
        job.signal(signal.SIGTERM)
        assert all(outcome.exit_code == 0 for outcome in job.outcomes(timeout=120))
    assert losses(RunFolder(recipe.run_folder)) == pytest.approx(losses(whole), abs=1e-4)


def test_a_phase_takes_learning_rate_and_schedule_from_its_recipe(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe(
        "phase",
        *TWO,
        f"start={{mode: phase, checkpoint: '{whole.path}', step: 10}}",
        "schedule.learning_rate=7e-4",
        "schedule.min_learning_rate=2e-5",
        "schedule.warmup_steps=0",
    )
    run = train_run(recipe)
    rows = read_metrics(run.metrics_file)[0]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["learning_rate"] == pytest.approx(7e-4)
    assert max(row["learning_rate"] for row in rows) == pytest.approx(7e-4)
    assert rows[0]["consumed_samples"] == 8
    # The weights came along: the first loss is far below the base model's.
    assert rows[0]["loss"] < losses(whole)[1] - 0.1


def test_a_phase_keeps_the_moments(whole: RunFolder, make_small: Callable[[int], Small]) -> None:
    """With fresh moments the first update would be another one, so the second loss tells them apart."""
    common = (*TWO, "schedule.learning_rate=3e-3", "schedule.warmup_steps=0")
    small = make_small(STEPS)
    start = f"checkpoint: '{whole.path}', step: 10"
    phase = train_run(small.recipe("moments-kept", *common, f"start={{mode: phase, {start}}}"))
    fresh = train_run(small.recipe("moments-fresh", *common, f"start={{mode: weights, {start}}}"))
    assert losses(phase)[1] == pytest.approx(losses(fresh)[1], abs=1e-6)
    assert abs(losses(phase)[2] - losses(fresh)[2]) > 1e-3


def test_weights_starts_the_schedule_at_step_zero(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe(
        "again", *TWO, f"start={{mode: weights, checkpoint: '{whole.path}', step: 10}}"
    )
    rows = read_metrics(train_run(recipe).metrics_file)[0]
    assert rows[0]["step"] == 1 and rows[0]["learning_rate"] == 0 and rows[0]["consumed_samples"] == 8
    assert rows[1]["learning_rate"] == pytest.approx(1.5e-3)


def test_a_half_written_checkpoint_is_passed_over(
    whole: RunFolder, make_small: Callable[[int], Small]
) -> None:
    recipe = make_small(STEPS).recipe("cut", *TWO)
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 12, 2)
    job.signal(signal.SIGTERM)
    job.outcomes(timeout=120)
    last = complete_steps(run.checkpoints)[-1]
    shard = next(checkpoint_folder(run.checkpoints, last).glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    launch = run.prepare(recipe, take_over=True)
    assert launch.load.step is not None and launch.load.step < last
    train_run(recipe)
    assert losses(run) == losses(whole)


def test_a_run_that_was_taken_over_writes_nothing_more(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(STEPS).recipe("taken", *TWO, "checkpoint.interval=10")
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 2, 2)
    write_json(run.writer_file, {"writer": "another", "host": "elsewhere", "pid": 1, "started": "now"})
    outcomes = job.outcomes(timeout=120)
    assert all(outcome.exit_code != 0 for outcome in outcomes)
    assert "it took this run over" in outcomes[0].output
    assert complete_steps(run.checkpoints) == []


def test_a_team_mate_can_save_and_stop_a_run(make_small: Callable[[int], Small], whole: RunFolder) -> None:
    recipe = make_small(STEPS).recipe("asked", *TWO, "checkpoint.interval=1000")
    job, run = start_run(recipe), RunFolder(recipe.run_folder)
    at_step(job, 2, 2)
    run.save_request.touch()
    while not complete_steps(run.checkpoints):
        assert len(job.exit_codes) == 0
        time.sleep(0.05)
    saved = complete_steps(run.checkpoints)
    assert not run.save_request.exists() and len(saved) == 1
    run.stop_request.touch()
    assert [outcome.exit_code for outcome in job.outcomes(timeout=120)] == [0, 0]
    assert complete_steps(run.checkpoints)[-1] > saved[0]
    with pytest.raises(UserError, match="stop asks this run to stop"):
        run.prepare(recipe, take_over=True)
    run.stop_request.unlink()
    train_run(recipe)
    assert losses(run) == losses(whole)


def test_retention_keeps_what_the_recipe_says(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(STEPS).recipe("kept", "checkpoint={interval: 5, keep: 1, keep_every: 10}")
    run = train_run(recipe)
    assert complete_steps(run.checkpoints) == [10, 20]
