"""What is asked of Slurm when a chain is submitted, by programs that note how they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.slurm import submit as submission
from emma.slurm.history import History
from emma.slurm.submit import plan_chain, submit
from tests.slurm.conftest import MakeRecipe
from tests.slurm.pretended import Pretended, pretend

CHAIN = ["pack", "mix", "train", "convert", "evaluate", "release"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return pretend(tmp_path / "pretended", monkeypatch)


def real(slurm: Pretended) -> list[list[str]]:
    """Calls of sbatch that submit."""
    return [call for call in slurm.calls("sbatch") if "--test-only" not in call and "--hold" not in call]


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
    held = [call for call in slurm.calls("sbatch") if "--hold" in call]
    assert len(held) == 1 and slurm.calls("scancel") == [["101"]] and [job.job for job in done] == [102]


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
        submission.submit(plan_chain(make_recipe()))
    assert not real(slurm)
