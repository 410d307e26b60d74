"""What is asked of Slurm when a chain is submitted, by programs that note how they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base import file_systems, sharing
from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.commands.slurm import group
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import StageName
from emma.slurm.history import History
from emma.slurm.link import group as link
from emma.slurm.stages import STAGES, place
from emma.slurm.submissions import note
from emma.slurm.submit import SubmittedMeanwhileError, plan_chain, submit
from tests.slurm.conftest import MakeRecipe
from tests.slurm.pretended import Pretended, pretend

FAR = "--begin=now+10days"
CHAIN = ["pack", "mix", "train", "convert", "evaluate", "release"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return pretend(tmp_path / "pretended", monkeypatch)


def real(slurm: Pretended) -> list[list[str]]:
    """Calls of sbatch that submit."""
    return [call for call in slurm.calls("sbatch") if not {"--test-only", FAR} & set(call)]


def test_every_job_waits_its_turn_and_ends_with_what_it_waits_for(
    make_recipe: MakeRecipe, slurm: Pretended
) -> None:
    done = submit(plan_chain(make_recipe()))
    assert [job.key for job in done] == CHAIN
    for call, job in zip(real(slurm), done, strict=True):
        assert f"--dependency={job.dependency}" in call and job.dependency.endswith("singleton")
        assert "--kill-on-invalid-dep=yes" in call
    assert done[1].dependency == f"afterok:{done[0].job},singleton"


def test_what_was_submitted_is_cancelled_if_a_later_job_is_refused(
    make_recipe: MakeRecipe, slurm: Pretended
) -> None:
    chain = plan_chain(make_recipe())
    slurm.refuse("convert.sbatch")
    with pytest.raises(UserError, match="no such thing"):
        submit(chain)
    assert slurm.calls("scancel") == [["101", "102", "103"]]


@pytest.mark.parametrize("error", [PermissionError(13, "no"), KeyboardInterrupt(), RuntimeError("any")])
def test_what_was_submitted_is_cancelled_whatever_goes_wrong(
    error: BaseException, make_recipe: MakeRecipe, slurm: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = plan_chain(make_recipe())
    add = History.add

    def fail(history: History, event: str, **facts: object) -> None:
        if facts.get("stage") == "mix":
            raise error
        add(history, event, **facts)

    monkeypatch.setattr(History, "add", fail)
    with pytest.raises(type(error)):
        submit(chain)
    assert slurm.calls("scancel") == [["101", "102"]]


def test_a_job_that_would_wait_for_a_node_is_not_refused(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    slurm.lose_a_node()
    done = submit(plan_chain(make_recipe(), "train", "train"))
    asked = [call for call in slurm.calls("sbatch") if FAR in call]
    assert len(asked) == 1 and slurm.calls("scancel") == [["101"]] and [job.job for job in done] == [102]


def test_a_job_that_would_wait_forever_is_refused(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    slurm.lose_a_node("PartitionConfig")
    with pytest.raises(
        UserError, match=r"would refuse this job: Requested .* forever \(PartitionConfig\)\. Fix: "
    ):
        submit(plan_chain(make_recipe(), "train", "train"))
    assert not real(slurm) and slurm.calls("scancel") == [["101"]]


def test_what_sbatch_refuses_is_refused_in_its_words(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    slurm.lose_a_node()
    slurm.refuse("train.sbatch")
    with pytest.raises(UserError, match=r"Slurm would refuse this job: no such thing\. Fix: change"):
        submit(plan_chain(make_recipe(), "train", "train"))
    assert not real(slurm)


def test_refusals_come_before_the_first_job(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    slurm.lose_a_node()
    slurm.refuse("release.sbatch")
    with pytest.raises(UserError, match=r"release\.sbatch: Slurm would refuse"):
        submit(plan_chain(make_recipe()))
    assert not real(slurm)


def by_another(recipe: Recipe, stage: StageName, job: int, **changes: object) -> None:
    """The note of another user's submission of a stage."""
    note(recipe, STAGES[stage], job)
    file = place(recipe, stage) / f".{stage}.submitted.json"
    write_json(file, {**read_json(file), "user": "alice", "host": "login1", **changes})


def test_what_another_user_has_submitted_is_waited_for(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    recipe = make_recipe()
    by_another(recipe, "pack", 77)
    slurm.others([77])
    chain = plan_chain(recipe)
    assert "job 77 of alice, submitted on login1 at " in chain.settled["pack"]
    done = submit(chain)
    assert done[0].key == "mix" and done[0].dependency == "afterok:77,singleton"


def test_links_of_anothers_run_may_be_cancelled_once_it_is_finished(
    make_recipe: MakeRecipe, slurm: Pretended
) -> None:
    recipe = make_recipe()
    by_another(recipe, "train", 77)
    slurm.others([77])
    done = submit(plan_chain(recipe, "train", "convert"))
    assert [job.dependency for job in done] == ["afterany:77,singleton"]


def test_a_job_of_another_user_that_has_ended_is_not_waited_for(
    make_recipe: MakeRecipe, slurm: Pretended
) -> None:
    recipe = make_recipe()
    by_another(recipe, "pack", 77)
    assert plan_chain(recipe).links[0].key == "pack"


@pytest.mark.parametrize("waits", [True, False])
def test_where_jobs_are_private_the_scheduler_is_asked(
    waits: bool, make_recipe: MakeRecipe, slurm: Pretended
) -> None:
    recipe = make_recipe()
    by_another(recipe, "pack", 77)
    slurm.configure("KillWait = 30 sec\nPrivateData = jobs,usage\n")
    slurm.private([77] if waits else [])
    assert ("pack" in plan_chain(recipe).settled) == waits
    assert slurm.calls("scancel") == [["101"]], "the job that asked is gone"


def test_a_pack_that_lacks_components_is_no_substitute(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    recipe = make_recipe()
    by_another(recipe, "pack", 77, content=["other"])
    slurm.others([77])
    assert plan_chain(recipe).links[0].key == "pack"


def test_of_two_submissions_at_once_one_finds_the_other(
    make_recipe: MakeRecipe, slurm: Pretended, tmp_path: Path
) -> None:
    recipe = make_recipe()
    chain = plan_chain(recipe, "pack", "mix")
    # Somebody else submits between this plan and this submission.
    by_another(recipe, "pack", 77)
    slurm.others([77])
    with pytest.raises(SubmittedMeanwhileError, match=r"pack: job 77 of alice.*Fix: submit again"):
        submit(chain)
    assert not real(slurm)
    again = CliRunner().invoke(group, ["submit", str(tmp_path / "small.yaml"), "--to", "mix"])
    assert again.exit_code == 0 and "job 77 of alice" in again.output and "submitted mix" in again.output


def test_a_refused_submission_leaves_no_note(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    recipe = make_recipe()
    chain = plan_chain(recipe, "pack", "mix")
    slurm.refuse("mix.sbatch")
    with pytest.raises(UserError):
        submit(chain)
    assert not list(Path().rglob(".*submitted.json"))
    slurm.refuse("")
    submit(plan_chain(recipe, "pack", "mix"))
    assert Path("store/.pack.submitted.json").is_file() and Path("mix/.small.mix.submitted.json").is_file()
    assert not list(Path().rglob(".*.lock"))


def test_a_dry_run_asks_by_no_job_of_its_own(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    recipe = make_recipe()
    by_another(recipe, "pack", 77)
    slurm.configure("KillWait = 30 sec\nPrivateData = jobs\n")
    assert "job 77 of alice" in plan_chain(recipe, dry_run=True).settled["pack"]
    assert not slurm.calls("sbatch")


def test_ones_own_second_submission_finds_the_first(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    """From two terminals at once: both were planned before either was submitted."""
    recipe = make_recipe()
    first, second = plan_chain(recipe, "pack", "pack"), plan_chain(recipe, "pack", "pack")
    (job,) = submit(first)
    slurm.others([job.job])
    with pytest.raises(SubmittedMeanwhileError):
        submit(second)
    assert len(real(slurm)) == 1


def test_locks_of_one_machine_are_said_at_submission(
    make_recipe: MakeRecipe,
    slurm: Pretended,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(file_systems, "_mounts", lambda: "server:/x / nfs rw,nolock,local_lock=all 0 0\n")
    recipe = make_recipe()
    submit(plan_chain(recipe, "pack", "mix"))
    said = [line for line in capsys.readouterr().err.splitlines() if "other machines don't see" in line]
    assert len(said) == 2 and said[1].startswith(f"warning: {Path('store').absolute()}: ")


def test_a_job_that_takes_anothers_place_is_noted(
    make_recipe: MakeRecipe, slurm: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    (job,) = submit(plan_chain(recipe, "train", "train"))
    noted = recipe.run_folder / ".train.submitted.json"
    for by, told in ((job.job + 1, job.job + 1), (7, job.job + 1)):
        # The second time, the job that was replaced is no longer the one that is noted.
        monkeypatch.setenv("SLURM_JOB_ID", str(job.job))
        assert not link(["replaced", str(recipe.run_folder), str(by)], standalone_mode=False)
        assert read_json(noted)["job"] == told


def test_scripts_and_recipes_follow_the_umask(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    before = os.umask(0o022)
    try:
        submit(plan_chain(make_recipe(), "train", "train"))
        assert "\numask 0022\n" in Path("runs/small/slurm/train.sbatch").read_text()
        Path("runs").chmod(0o2775)
        submit(plan_chain(make_recipe("name=shared"), "train", "train"))
        assert "\numask 0002\n" in Path("runs/shared/slurm/train.sbatch").read_text()
        assert all(path.stat().st_mode & 0o020 for path in Path("runs/shared").rglob("*"))
        recipe = make_recipe("name=closed", "paths.umask='027'")
        submit(plan_chain(recipe, "train", "train"))
        assert "\numask 0027\n" in Path("runs/closed/slurm/train.sbatch").read_text()
        assert not any(path.stat().st_mode & 0o027 for path in Path("runs/closed").rglob("*"))
        assert recipe.sha256 == make_recipe("name=closed").sha256, "no manifest changes with it"
    finally:
        sharing._fixed = False
        os.umask(before)
