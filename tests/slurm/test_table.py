"""The table of jobs and runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.recipes.load import load_recipe, write_recipe
from emma.slurm.history import History
from emma.slurm.query import Job
from emma.slurm.table import collect, find_runs, table_text
from emma.tools.runs.claim import Claim
from emma.tools.runs.decision import Decision
from emma.tools.runs.forgetting import Look
from emma.tools.runs.goodput import goodput
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.conftest import MakeRecipe
from tests.tools.runs.test_checkpoints import save


def job(
    number: int, stage: str, folder: Path, state: str = "PENDING", waits: str = "", task: str | None = None
) -> Job:
    reason = "Dependency" if waits else "None"
    comment = f"emma {stage} {folder}"
    return Job(
        number, number, task, state, "main", 1, "1:00:00", "N/A", reason, "", waits, f"x-{stage}", comment
    )


@pytest.fixture
def run(make_recipe: MakeRecipe, without_slurm: None) -> RunFolder:
    recipe = make_recipe()
    run = RunFolder(recipe.run_folder.absolute())
    write_recipe(recipe, run.recipe_file)
    save(run.checkpoints, 5)
    row = {"step": 6, "consumed_tokens": 1536, "loss": 2.5, "tokens_per_second_per_gpu": 64.0}
    append_metrics(run.metrics_file, row)
    return run


def test_a_running_job_says_how_long_it_is_silent_and_how_earlier_ones_ended(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three launches one ended by itself, one was lost; in the third, no rank has started, then a save hangs."""
    recipe = load_recipe(run.path)
    for number, how in ((4, "its ranks ended with exit code 1"), (5, "node_fail")):
        monkeypatch.setenv("SLURM_JOB_ID", str(number))
        run.release_claim(run.prepare(recipe), how)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    launch = run.prepare(recipe)
    queue = [job(7, "train", run.path, "RUNNING")]
    (row,) = collect([run.path], queue)
    assert row.ended == ("job 4: its ranks ended with exit code 1", "job 5: node_fail")
    assert row.doing == "no ranks" and 0 <= (row.silent or 0) < 60 and row.silent_limit == 1800
    now = time.time()
    usual = {"step": 2.0, "start-up": 50.0, "save": 100.0}
    beat = {"phase": "save", "step": 6, "since": now - 700, "time": now, "seconds": usual}
    write_json(Path(launch.logs) / "heartbeat.json", beat)
    (row,) = collect([run.path], queue)
    assert row.doing == "save" and 700 <= (row.silent or 0) < 760 and row.silent_limit == 1000
    text = table_text([row])
    assert "12m (save) !" in text
    assert "small ended before: job 4: its ranks ended with exit code 1; job 5: node_fail" in text


def test_goodput_says_where_the_hours_went(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launches: 100 s with 4 steps of 10 s, of which 2 are repeated by the second; that one was lost after 60 s and
    found an hour later."""
    recipe = load_recipe(run.path)
    run.metrics_file.write_bytes(b"")
    begun = datetime(2026, 1, 1, tzinfo=UTC)

    def launched(number: int, after: float, ended: float, last: float, steps: Sequence[int]) -> None:
        claim = replace(
            Claim.of_this_process(number, "job"), started=(begun + timedelta(seconds=after)).isoformat()
        )
        write_json(run.claims.file(number), asdict(claim))
        end = {"how": "x", "by": "x", "time": (begun + timedelta(seconds=ended)).isoformat()}
        write_json(run.claims.end_file(number), end)
        seen = begun.timestamp() + last
        beat = {
            "phase": "step",
            "step": steps[-1],
            "since": seen,
            "time": seen,
            "seconds": {"start-up": 25.0},
        }
        write_json(run.logs / f"launch-{number:04d}" / "heartbeat.json", beat)
        for step in steps:
            speed = recipe.tokens_per_step / 10
            append_metrics(run.metrics_file, {"step": step, "loss": 1.0, "tokens_per_second_per_gpu": speed})

    launched(1, 0, 100, 99, [1, 2, 3, 4])
    launched(2, 200, 3800, 200, [3, 4])
    found = goodput(recipe, run)
    assert found is not None
    hours = {name: round(value * 3600) for name, value in found.to_dict().items() if name != "share"}
    assert hours == {"allocated": 160, "productive": 40, "repeated": 20, "start_up": 30, "other": 70}
    assert found.share == 0.25 and "25% of 0.0 device-hours productive" in str(found)


def test_a_running_job_shows_its_progress_and_what_follows(run: RunFolder) -> None:
    queue = [
        job(7, "train", run.path, "RUNNING"),
        job(8, "train", run.path, waits="afterany:7,singleton"),
        job(9, "convert", run.path, waits="afterok:8,singleton"),
        Job(10, 10, None, "RUNNING", "main", 1, "1", "", "", "", "", "other", "not ours"),
    ]
    first, second, third = collect([run.path], queue)
    assert (first.job, first.state, first.step, first.steps, first.tokens) == ("7", "running", 6, 10, 1536)
    assert (first.loss, first.tokens_per_second, first.checkpoint, first.next) == (2.5, 64.0, 5, "8")
    assert first.seconds_left == 4 * 8 * 32 / 64
    assert second.state == "pending (after afterany:7)" and second.next == "9"
    assert third.stage == "convert" and third.step is None
    text = table_text([first, second, third])
    assert (
        "6/10" in text
        and "2.500" in text
        and len({len(line.split("  ")) > 5 for line in text.splitlines()}) == 1
    )


def test_array_tasks_are_told_apart(run: RunFolder) -> None:
    rows = collect(
        [], [job(7, "pack", run.path, "RUNNING", task="2"), job(7, "pack", run.path, task="3-5%2")]
    )
    assert [row.job for row in rows] == ["7_2", "7_3-5%2"]


def test_each_trial_of_a_sweep_shows_its_progress(run: RunFolder, tmp_path: Path) -> None:
    trial = tmp_path / "runs" / "search" / "trial-0002"
    trial.parent.mkdir()
    run.path.rename(trial)
    queue = [
        job(7, "trials", trial.parent, "RUNNING", task="2"),
        job(7, "trials", trial.parent, task="3-5%2"),
        job(9, "results", trial.parent, waits="afterany:7_*"),
    ]
    first, second, third = collect([], queue)
    assert (first.run, first.step, first.steps, first.loss) == ("search/trial-0002", 6, 10, 2.5)
    assert (second.run, second.step) == (third.run, third.step) == ("search", None)
    assert first.next == second.next == "9"


def test_runs_without_jobs_say_why(run: RunFolder) -> None:
    def state() -> str:
        return collect([run.path], [])[0].state

    assert state() == "not submitted"
    History(run.path).add("submitted", stage="train", link="train", job=7, after="")
    assert state() == "no job left"
    for _ in range(3):
        History(run.path).add("began", job="7", restart=0, launch=1, step=5)
    assert state() == "given up"
    run.stop_request.touch()
    assert state() == "stopped by request"
    save(run.checkpoints, 10)
    assert state() == "finished"


def test_runs_are_found_in_folders(run: RunFolder, tmp_path: Path) -> None:
    assert find_runs([Path("runs")]) == [run.path] == find_runs([run.path])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_a_guard_says_what_is_forgotten_and_where_training_goes_on(run: RunFolder) -> None:
    recipe = load_recipe(run.path, ["guard={groups: {component-code: 0.01}, action: stop, base: base}"])
    write_recipe(recipe, run.recipe_file)
    look = Look(5, "component-code", 0.01, 0.04, 0.004, 0.02, 0.001, 60, forgotten=True)
    append_metrics(run.metrics_file, {"step": 5, "validation": {}, "guard": [look.to_dict()]})
    Decision(5, "stop", [look]).write(run.path)
    (row,) = collect([run.path], [])
    assert row.state == "ended by its guard at step 5" and row.forgotten == (str(look),)
    assert "small forgets: component-code: bits per byte +4.00 %" in table_text([row])
    # The jobs of a run whose guard has begun a phase train there.
    Decision(5, "replay", [look], phase="phase").write(run.path)
    phase = RunFolder(run.path.parent / "phase")
    write_recipe(load_recipe(run.path, ["name=phase", "guard=null"]), phase.recipe_file)
    (row,) = collect([run.path], [job(7, "train", run.path, "RUNNING")])
    assert (row.run, row.step, row.forgotten) == ("phase", 0, ())
    recipe = load_recipe(run.path, ["guard={groups: {component-code: 0.01}, action: replay, base: base}"])
    write_recipe(recipe, run.recipe_file)
    (row,) = collect([run.path], [])
    assert row.state == "goes on in phase"
