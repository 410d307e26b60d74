"""What a job decides from the run folder, before and after its ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.recipes.load import write_recipe
from emma.slurm.history import History
from emma.slurm.link import AGAIN, CONTINUES, begin, end, failed_nodes
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import LoadFailure, set_aside
from tests.slurm.conftest import MakeRecipe
from tests.tools.runs.test_checkpoints import save


@pytest.fixture
def run(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run as `emma slurm submit` leaves it, in job 7; assumes that its mix exists."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("emma.tools.training.plan_start.check_mix", lambda recipe: None)
    monkeypatch.setattr("emma.tools.training.plan_start.describe", lambda recipe, run, mix: "")
    recipe = make_recipe()
    write_recipe(recipe, recipe.run_folder / "recipe.yaml")
    return RunFolder(recipe.run_folder)


def test_a_finished_run_starts_no_ranks(run: RunFolder) -> None:
    save(run.checkpoints, 10)
    assert begin(run.path, []) is None
    assert not run.writer_file.exists()


def test_each_launch_has_its_own_logs(run: RunFolder) -> None:
    first = begin(run.path, [7])
    assert end(run.path, 0) == CONTINUES
    second = begin(run.path, [7])
    assert first is not None and second is not None and first != second
    assert [event["event"] for event in History(run.path).events()] == ["began", "ended", "began"]


def test_a_run_without_progress_is_given_up_and_a_new_submission_resets_the_count(run: RunFolder) -> None:
    for _ in range(2):
        begin(run.path, [7])
        assert end(run.path, 1) == CONTINUES
    begin(run.path, [7])
    with pytest.raises(CheckFailedError, match="3 jobs in a row ended at step 0 without a new checkpoint"):
        end(run.path, 1)
    with pytest.raises(CheckFailedError, match="given up"):
        begin(run.path, [7])
    History(run.path).add("submitted", stage="train", link="train", job=8, after="")
    assert begin(run.path, [7]) is not None


def test_jobs_that_died_silently_count_too(run: RunFolder) -> None:
    """A lost node or a time limit leaves no `ended`."""
    for _ in range(3):
        begin(run.path, [7])
    with pytest.raises(CheckFailedError, match="given up"):
        begin(run.path, [7])


def test_progress_resets_the_count(run: RunFolder) -> None:
    for step in (1, 2, 3, 4, 5):
        begin(run.path, [7])
        save(run.checkpoints, step)
        assert end(run.path, 1) == CONTINUES


def test_a_launch_that_rewinds_is_restarted_and_not_counted_as_failed(run: RunFolder) -> None:
    for step in (3, 4, 5):
        begin(run.path, [7])
        state = {"writer": run.read_launch().writer, "state": "rewind", "step": step, "reason": "spoilt"}
        write_json(run.state_file, state)
        assert end(run.path, 0) == AGAIN
    begin(run.path, [7])
    assert end(run.path, 1) == CONTINUES, "what an earlier launch said does not count"


def set_aside_by_ranks(run: RunFolder, step: int) -> None:
    """What the ranks leave that find a damaged checkpoint."""
    launch = run.read_launch()
    record = set_aside(run.checkpoints, run.checkpoints_log, step, "damaged", "files", launch.number)
    write_json(run.state_file, {"writer": launch.writer, "state": "set aside", "reason": str(record)})


def test_damaged_checkpoints_are_no_failed_jobs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Four of them, one after the other, where three jobs without progress are given up; each job had made progress
    before, at steps that are now gone."""
    for step in (1, 2, 3, 4, 5):
        begin(run.path, [7])
        save(run.checkpoints, step)
        assert end(run.path, 1) == CONTINUES
    for step in (5, 4, 3, 2):
        begin(run.path, [7])
        assert run.read_launch().load.step == step
        set_aside_by_ranks(run, step)
        assert end(run.path, 0) == AGAIN
        assert (
            f"iter_{step:07d} is set aside: damaged; training goes back to step {step - 1}"
            in capsys.readouterr().err
        )
    for _ in range(2):
        begin(run.path, [7])
        assert run.read_launch().load.step == 1 and end(run.path, 1) == CONTINUES
    begin(run.path, [7])
    with pytest.raises(CheckFailedError, match="3 jobs in a row ended at step 1"):
        end(run.path, 1)


def test_the_only_checkpoint_damaged_ends_the_chain_with_the_reason(run: RunFolder) -> None:
    save(run.checkpoints, 5)
    begin(run.path, [7])
    set_aside_by_ranks(run, 5)
    assert end(run.path, 0) == AGAIN
    with pytest.raises(UserError, match=r"none of them can be used \(iter_0000005\.damaged-1: damaged\)"):
        begin(run.path, [7])


def test_a_checkpoint_that_does_not_load_starts_the_ranks_again_in_the_same_job(run: RunFolder) -> None:
    save(run.checkpoints, 4)
    save(run.checkpoints, 5)
    begin(run.path, [7])
    LoadFailure(5, 3, "n1", "content", "KeyError: 'x'").write(Path(run.read_launch().logs))
    assert end(run.path, 1) == AGAIN
    begin(run.path, [7])
    assert run.read_launch().load.step == 4


def test_the_base_models_own_loss_is_there_before_the_ranks_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "emma.tools.training.launch.compute_reference",
        lambda recipe, run, launch: asked.append(launch.number),
    )
    begin(run.path, [7])
    assert asked == [1]


def test_a_job_that_is_gone_loses_its_claim(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(run.path, [7])
    first = run.read_launch()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(UserError, match=r"Slurm job 7 .* has been writing this run"):
        begin(run.path, [7, 8])
    begin(run.path, [8])
    assert not run.holds_claim(first) and run.holds_claim(run.read_launch())


def test_a_restarted_job_takes_its_own_claim_over(run: RunFolder) -> None:
    begin(run.path, [7])
    first = run.read_launch()
    begin(run.path, [7])
    assert not run.holds_claim(first)


def test_a_writer_outside_slurm_is_respected(run: RunFolder) -> None:
    write_json(run.writer_file, {"writer": "x", "host": "another", "pid": 5, "job": None, "started": "now"})
    with pytest.raises(UserError, match="process 5 on another has been writing this run"):
        begin(run.path, [7])


def test_a_launch_that_was_taken_over_does_not_continue(run: RunFolder) -> None:
    begin(run.path, [7])
    write_json(run.writer_file, {"writer": "x", "host": "another", "pid": 5, "job": "9", "started": "now"})
    with pytest.raises(CheckFailedError, match="another launch has taken over this run"):
        end(run.path, 2)
    assert read_json(run.writer_file)["writer"] == "x"


def test_a_teammates_stop_ends_the_chain(run: RunFolder) -> None:
    begin(run.path, [7])
    run.stop_request.touch()
    with pytest.raises(CheckFailedError, match="remove the file and submit again"):
        end(run.path, 0)
    with pytest.raises(UserError, match="asks this run to stop"):
        begin(run.path, [7])


def test_a_pruned_trial_is_finished(run: RunFolder) -> None:
    begin(run.path, [7])
    write_json(run.path / "trial.json", {"number": 0, "parameters": {}, "pruned": 5})
    assert end(run.path, 0) == 0
    assert begin(run.path, [7]) is None


def test_nodes_are_named_by_their_faults_and_their_silence(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path(begin(run.path, [7]) or "")
    for rank, node, faults in ((0, "n1", []), (1, "n2", ["7 GPUs are visible, 8 are expected"])):
        write_json(
            logs / f"preflight-{rank}.json", {"node": node, "rank": rank, "faults": faults, "network": []}
        )
    assert failed_nodes(run.path, ["n1", "n2", "n3"]) == ["n2", "n3"]
    said = capsys.readouterr().err
    assert "n2: 7 GPUs are visible" in said and "n3: left no report" in said
    assert not run.writer_file.exists(), "the next job must not wait for this one's claim"


def test_nodes_that_failed_before_stay_excluded_until_the_next_submission(run: RunFolder) -> None:
    def fail(node: str) -> list[str]:
        logs = Path(begin(run.path, [7]) or "")
        report = {"node": node, "rank": 0, "faults": ["ill"], "network": []}
        write_json(logs / "preflight-0.json", report)
        return failed_nodes(run.path, [node])

    assert fail("n1") == ["n1"] and fail("n2") == ["n1", "n2"]
    History(run.path).add("submitted", stage="train", link="train", job=8, after="")
    assert fail("n3") == ["n3"]


def test_no_node_is_named_where_none_of_several_reported(run: RunFolder) -> None:
    begin(run.path, [7])
    assert failed_nodes(run.path, ["n1", "n2"]) == [], "their environment is at fault"


def test_no_node_is_named_where_only_the_network_failed(run: RunFolder) -> None:
    logs = Path(begin(run.path, [7]) or "")
    for rank, node in ((0, "n1"), (1, "n2")):
        report = {"node": node, "rank": rank, "faults": [], "network": ["all-reduce over 2 ranks: timed out"]}
        write_json(logs / f"preflight-{rank}.json", report)
    assert failed_nodes(run.path, ["n1", "n2"]) == []
