"""What a job decides from the run folder, before and after its ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.schema import Recipe
from emma.slurm.history import History
from emma.slurm.link import AGAIN, CONTINUES, LATER, EndingError, begin, end, failed_nodes, owner
from emma.tools.runs.claim import Claim
from emma.tools.runs.decision import Decision
from emma.tools.runs.fence import DisplacedError, InUseError
from emma.tools.runs.forgetting import Look
from emma.tools.runs.run_folder import IDENTITY, Launch, RunFolder
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


def start(run: RunFolder, word: str = "") -> Launch:
    """What a job does before its ranks start."""
    launch = begin(run.path, word)
    assert launch is not None
    os.environ[IDENTITY] = launch.identity
    return launch


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what `start` sets."""
    for name in (IDENTITY, "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def shown(state: str, restarts: int = 0, job: int = 7) -> str:
    """What `scontrol --oneliner show job` says, in short."""
    return f"JobId={job} JobName=x UserId=a(1) JobState={state} Reason=None Requeue=1 Restarts={restarts} BatchFlag=1"


def test_a_finished_run_starts_no_ranks(run: RunFolder) -> None:
    save(run.checkpoints, 10)
    assert begin(run.path) is None and run.claims.latest() is None


def test_each_launch_has_its_own_logs(run: RunFolder) -> None:
    first = start(run)
    assert end(run.path, 0) == CONTINUES
    second = start(run)
    assert first.logs != second.logs and (first.number, second.number) == (1, 2)
    assert [event["event"] for event in History(run.path).events()] == ["began", "ended", "began"]


def test_a_run_without_progress_is_given_up_and_a_new_submission_resets_the_count(run: RunFolder) -> None:
    for _ in range(2):
        start(run)
        assert end(run.path, 1) == CONTINUES
    start(run)
    with pytest.raises(UserError, match="3 jobs in a row ended at step 0 without a new checkpoint"):
        end(run.path, 1)
    with pytest.raises(UserError, match="given up"):
        start(run)
    History(run.path).add("submitted", stage="train", link="train", job=8, after="")
    assert start(run) is not None


def test_jobs_that_died_silently_count_too(run: RunFolder) -> None:
    """A time limit that comes too early leaves no `ended`."""
    for _ in range(3):
        start(run)
    with pytest.raises(UserError, match="given up"):
        start(run)


def test_progress_resets_the_count(run: RunFolder) -> None:
    for step in (1, 2, 3, 4, 5):
        start(run)
        save(run.checkpoints, step)
        assert end(run.path, 1) == CONTINUES


def test_a_launch_that_rewinds_is_restarted_and_not_counted_as_failed(run: RunFolder) -> None:
    for step in (3, 4, 5):
        start(run)
        state = {"writer": run.read_launch().writer, "state": "rewind", "step": step, "reason": "spoilt"}
        write_json(run.read_launch().state_file, state)
        assert end(run.path, 0) == AGAIN
    start(run)
    assert end(run.path, 1) == CONTINUES, "what an earlier launch said does not count"


def set_aside_by_ranks(run: RunFolder, step: int) -> None:
    """What the ranks leave that find a damaged checkpoint."""
    launch = run.read_launch()
    record = set_aside(run.checkpoints, run.checkpoints_log, step, "damaged", "files", run.fence(launch))
    write_json(
        run.read_launch().state_file, {"writer": launch.writer, "state": "set aside", "reason": str(record)}
    )


def test_damaged_checkpoints_are_no_failed_jobs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Four of them, one after the other, where three jobs without progress are given up; each job had made progress
    before, at steps that are now gone."""
    for step in (1, 2, 3, 4, 5):
        start(run)
        save(run.checkpoints, step)
        assert end(run.path, 1) == CONTINUES
    for step in (5, 4, 3, 2):
        start(run)
        assert run.read_launch().load.step == step
        set_aside_by_ranks(run, step)
        assert end(run.path, 0) == AGAIN
        assert (
            f"iter_{step:07d} is set aside: damaged; training goes back to step {step - 1}"
            in capsys.readouterr().err
        )
    for _ in range(2):
        start(run)
        assert run.read_launch().load.step == 1 and end(run.path, 1) == CONTINUES
    start(run)
    with pytest.raises(UserError, match="3 jobs in a row ended at step 1"):
        end(run.path, 1)


def test_the_only_checkpoint_damaged_ends_the_chain_with_the_reason(run: RunFolder) -> None:
    save(run.checkpoints, 5)
    start(run)
    set_aside_by_ranks(run, 5)
    assert end(run.path, 0) == AGAIN
    with pytest.raises(UserError, match=r"none of them can be used \(iter_0000005\.damaged-1: damaged\)"):
        start(run)


def test_a_checkpoint_that_does_not_load_starts_the_ranks_again_in_the_same_job(run: RunFolder) -> None:
    save(run.checkpoints, 4)
    save(run.checkpoints, 5)
    start(run)
    LoadFailure(5, 3, "n1", "content", "KeyError: 'x'").write(Path(run.read_launch().logs))
    assert end(run.path, 1) == AGAIN
    start(run)
    assert run.read_launch().load.step == 4


def test_the_base_models_own_loss_is_there_before_the_ranks_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "emma.tools.training.launch.compute_reference",
        lambda recipe, run, launch: asked.append(launch.number),
    )
    start(run)
    assert asked == [1]


def test_the_end_of_a_displaced_job_changes_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 7 is taken over by job 8 and ends afterwards: the run stays with 8, and 7 does not go on."""
    first = start(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    second = start(run, shown("NODE_FAIL"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(IDENTITY, first.identity)
    with pytest.raises(DisplacedError, match=r"launch 2 \(Slurm job 8 .*took this run over"):
        end(run.path, 1)
    assert run.holds_claim(second) and not run.holds_claim(first)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv(IDENTITY, second.identity)
    assert end(run.path, 1) == CONTINUES
    assert [event["held"] for event in History(run.path).events() if event["event"] == "ended"] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    "word",
    [
        *("", "slurm_load_jobs error: Invalid job id specified", shown("FAILED", job=9), "9|FAILED\n"),
        *(shown("RUNNING"), shown("RUNNING", 1), shown("SUSPENDED"), "7|FAILED\n7|RUNNING\n", "7|\n"),
    ],
)
def test_without_slurms_word_that_the_job_has_ended_nothing_is_taken(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    first = start(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(InUseError, match=r"Slurm job 7 of .*(has been writing|It may be running)"):
        begin(run.path, word)
    assert run.holds_claim(first) and run.claims.latest() == run.claims.writer()
    assert not [event for event in History(run.path).events() if event["event"] == "lost"]


@pytest.mark.parametrize(
    ("word", "how"),
    [
        (shown("TIMEOUT"), "timeout"),
        (shown("COMPLETED"), "completed"),
        (shown("PENDING", 1), "requeued by slurm"),
        ("error\n7|NODE_FAIL\n7|CANCELLED by 0\n", "cancelled"),
        ("7|REQUEUED\n7|PREEMPTED\n8|RUNNING\n", "preempted"),
    ],
)
def test_slurms_word_ends_a_launch(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, word: str, how: str
) -> None:
    first = start(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert owner(run.path) == "7"
    assert start(run, word).number == 2 and not run.holds_claim(first)
    (lost,) = [event for event in History(run.path).events() if event["event"] == "lost"]
    assert (lost["launch"], lost["how"]) == (1, how)
    assert run.claims.end_of(1) is not None and owner(run.path) is None


@pytest.mark.parametrize("word", [shown("COMPLETING"), shown("PENDING"), shown("COMPLETING", 0)])
def test_a_job_that_is_ending_is_waited_for(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    start(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(EndingError) as raised:
        begin(run.path, word)
    assert raised.value.exit_code == LATER


def test_what_a_script_gets(run: RunFolder) -> None:
    """Through the command line, as the job's script calls it."""

    def call(*words: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "emma.slurm.link", *words]
        environment = {**os.environ, **variables}
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env=environment
        )

    launch = start(run)
    asked = call("owner", str(run.path), SLURM_JOB_ID="8")
    assert (asked.returncode, asked.stdout) == (0, "7\n")
    hidden = call("begin", str(run.path), SLURM_JOB_ID="8")
    assert hidden.returncode == 1 and "--writer-is-gone" in hidden.stderr, "another may go on: not 2"
    assert call("begin", str(run.path), SLURM_JOB_ID="8", text=shown("COMPLETING")).returncode == LATER
    assert call("end", str(run.path), "--exit-code", "1", EMMA_LAUNCH="").returncode == 2
    assert call("end", str(run.path), "--exit-code", "2", EMMA_LAUNCH=launch.identity).returncode == 2
    assert call("end", str(run.path), "--exit-code", "1", EMMA_LAUNCH="1-0123").returncode == 2


def test_a_restarted_job_takes_its_own_claim_over(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert owner(run.path) is None
    start(run)
    assert not run.holds_claim(first)


def test_the_script_of_an_earlier_start_does_not_take_the_run_back(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on, on a node that Slurm has lost."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    later = start(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(InUseError, match="has been writing this run"):
        begin(run.path, shown("RUNNING", 1))
    assert run.holds_claim(later)


def test_requeues_during_start_up_do_not_end_a_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preempted, or its node lost: Slurm requeues the job and says nothing. What ends by itself still counts."""
    for restart in range(5):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        start(run)
    for _ in range(2):
        assert end(run.path, 1) == CONTINUES
        start(run)
    with pytest.raises(UserError, match="given up: 3 jobs in a row"):
        end(run.path, 1)


def test_a_signal_long_before_the_time_limit_is_no_crash(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (143, 0, 143, 143):
        start(run)
        assert end(run.path, code) == CONTINUES
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 600))
    for _ in range(2):
        start(run)
        assert end(run.path, 143) == CONTINUES
    start(run)
    with pytest.raises(UserError, match="given up"):
        end(run.path, 143)


def test_what_the_ranks_refuse_ends_the_run(run: RunFolder) -> None:
    start(run)
    with pytest.raises(UserError, match="the ranks refused to go on, and would again") as raised:
        end(run.path, 2)
    assert raised.value.exit_code == 2


def test_a_writer_outside_slurm_is_respected(run: RunFolder) -> None:
    claim = replace(Claim.of_this_process(1, "process"), host="another", pid=5, job=None)
    write_json(run.claims.file(1), asdict(claim))
    with pytest.raises(InUseError, match=r"process 5 of .* on another has been writing this run"):
        begin(run.path, shown("FAILED"))


def test_a_teammates_stop_ends_the_chain(run: RunFolder) -> None:
    start(run)
    run.stop_request.touch()
    with pytest.raises(UserError, match="remove the file and submit again"):
        end(run.path, 0)
    with pytest.raises(UserError, match="asks this run to stop"):
        start(run)


def test_a_pruned_trial_is_finished(run: RunFolder) -> None:
    start(run)
    write_json(run.path / "trial.json", {"number": 0, "parameters": {}, "pruned": 5})
    assert end(run.path, 0) == 0
    assert begin(run.path) is None


def test_nodes_are_named_by_their_faults_and_their_silence(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path(start(run).logs)
    for rank, node, faults in ((0, "n1", []), (1, "n2", ["7 GPUs are visible, 8 are expected"])):
        write_json(
            logs / f"preflight-{rank}.json", {"node": node, "rank": rank, "faults": faults, "network": []}
        )
    assert failed_nodes(run.path, ["n1", "n2", "n3"]) == ["n2", "n3"]
    said = capsys.readouterr().err
    assert "n2: 7 GPUs are visible" in said and "n3: left no report" in said
    assert run.claims.writer() is None, "the next job must not wait for this one's claim"


def test_nodes_that_failed_before_stay_excluded_until_the_next_submission(run: RunFolder) -> None:
    def fail(node: str) -> list[str]:
        logs = Path(start(run).logs)
        report = {"node": node, "rank": 0, "faults": ["ill"], "network": []}
        write_json(logs / "preflight-0.json", report)
        return failed_nodes(run.path, [node])

    assert fail("n1") == ["n1"] and fail("n2") == ["n1", "n2"]
    History(run.path).add("submitted", stage="train", link="train", job=8, after="")
    assert fail("n3") == ["n3"]


def test_no_node_is_named_where_none_of_several_reported(run: RunFolder) -> None:
    start(run)
    assert failed_nodes(run.path, ["n1", "n2"]) == [], "their environment is at fault"


def test_no_node_is_named_where_only_the_network_failed(run: RunFolder) -> None:
    logs = Path(start(run).logs)
    for rank, node in ((0, "n1"), (1, "n2")):
        report = {"node": node, "rank": rank, "faults": [], "network": ["all-reduce over 2 ranks: timed out"]}
        write_json(logs / f"preflight-{rank}.json", report)
    assert failed_nodes(run.path, ["n1", "n2"]) == []


def guarded(run: RunFolder, action: str, **facts: object) -> RunFolder:
    """The run with a guard that has ended it at step 5."""
    recipe = load_recipe(
        run.path, [f"guard={{groups: {{component-code: 0.01}}, action: {action}, base: base}}"]
    )
    write_recipe(recipe, run.recipe_file)
    save(run.checkpoints, 5)
    look = Look(5, "component-code", 0.01, 0.04, 0.004, 0.02, 0.001, 60, forgotten=True)
    decision: Any = Decision(5, action, [look], **facts)  # type: ignore[arg-type]
    decision.write(run.path)
    return run


def test_a_guard_that_stops_ends_the_chain_with_its_reason(run: RunFolder) -> None:
    start(run)
    guarded(run, "stop")
    for step in (lambda: end(run.path, 0), lambda: start(run)):
        with pytest.raises(
            UserError, match=r"ended it at step 5: component-code: .*\+4\.00 %.*warn"
        ) as raised:
            step()
        assert raised.value.exit_code == 2


def test_a_guard_that_replays_starts_the_ranks_in_its_phase(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes on at once; so do the links after it, whose scripts still name the first run."""
    start(run)
    guarded(run, "replay")
    assert end(run.path, 0) == AGAIN

    def write(recipe: Recipe, folder: Path, decision: Decision) -> Decision:
        phase = load_recipe(
            folder, ["name=phase", f"start={{mode: phase, checkpoint: '{folder}', step: 5}}", "guard=null"]
        )
        write_recipe(phase, folder.parent / "phase" / "recipe.yaml")
        return decision.write(folder, phase="phase")

    monkeypatch.setattr("emma.tools.training.replay.write_phase", write)
    monkeypatch.setattr("emma.checkpoints_conversion.checkpoint.check_start", lambda recipe: None)
    launch = start(run)
    phase = RunFolder(run.path.parent / "phase")
    # What the script takes the run's folder from.
    assert launch.logs.removesuffix("/logs/launch-0001") == str(phase.path)
    assert owner(run.path) is None and phase.claims.writer() is not None
    save(phase.checkpoints, 3)
    assert end(phase.path, 1) == CONTINUES
    assert start(run).load.step == 3
    save(phase.checkpoints, load_recipe(phase.path).schedule.steps)
    assert end(phase.path, 0) == 0
    with pytest.raises(UserError, match=r"training is finished in .*phase.*--from convert"):
        begin(run.path)


def test_a_phase_that_cannot_be_written_ends_the_chain(run: RunFolder) -> None:
    start(run)
    guarded(run, "replay", refused="the mix holds 3 tokens")
    with pytest.raises(UserError, match="A phase cannot follow: the mix holds 3 tokens"):
        end(run.path, 0)
