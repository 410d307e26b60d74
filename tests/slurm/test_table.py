"""The table of jobs and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.load import write_recipe
from emma.slurm.history import History
from emma.slurm.query import Job
from emma.slurm.table import collect, find_runs, table_text
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
