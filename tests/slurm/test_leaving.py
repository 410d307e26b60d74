"""What is said at submission about the time to save."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.slurm.leaving import Window, windows
from emma.slurm.submit import plan_chain
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.conftest import MakeRecipe
from tests.slurm.pretended import Pretended, pretend


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return pretend(tmp_path / "pretended", monkeypatch)


BIG = [
    "cluster={nodes: 8, gpus_per_node: 8, device: h100, launcher: srun}",
    "precision.compute=bf16",
    "model=llama3_8b",
    "parallelism={tensor: 2, sequence: true}",
    "batch={micro: 2, global: 2048, sequence_length: 8192}",
    "checkpoint={interval: 100, keep: 1}",
    "schedule.steps=1000",
]


@pytest.mark.parametrize(("wait", "fits"), [(5, False), (30, False), (120, True)])
def test_whether_a_step_and_a_save_fit(
    wait: int, fits: bool, make_recipe: MakeRecipe, slurm: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.slurm.submit.check_room", lambda recipe, stages: None)
    slurm.configure(f"KillWait                = {wait} sec\nPreemptType = preempt/none\n")
    chain = plan_chain(make_recipe(*BIG), "train", "train")
    cancelled, limit = chain.leaving
    assert f"scancel: {wait} s to save (KillWait {wait} s)" in cancelled
    assert ("they fit" in cancelled) == fits and "they fit" in limit and "540 s" in limit
    assert chain.plan is not None and chain.plan.time is not None
    step = chain.plan.time.seconds_per_step
    assert f"({step:,.1f} planned + " in cancelled
    if not fits:
        lost = 100 * step * 64 / 3600
        assert f"up to 100 steps, {lost:,.0f} GPU-hours are lost. Fix: stop a run with" in cancelled
    assert chain.to_dict()["time_to_save"] == list(chain.leaving)


def test_a_signal_that_comes_too_late_is_said(
    make_recipe: MakeRecipe, slurm: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.slurm.submit.check_room", lambda recipe, stages: None)
    chain = plan_chain(make_recipe(*BIG, "cluster.slurm.signal_seconds=90"), "train", "train")
    assert (
        "the time limit: 30 s" in chain.leaving[-1]
        and "raise cluster.slurm.signal_seconds" in chain.leaving[-1]
    )


def test_measured_steps_count_more_than_planned_ones(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    recipe = make_recipe()
    assert "no step was measured or planned" in plan_chain(recipe, "train", "train").leaving[0]
    for step in range(1, 4):
        row = {"step": step, "loss": 1.0, "tokens_per_second_per_gpu": recipe.tokens_per_step / 7.0}
        append_metrics(RunFolder(recipe.run_folder).metrics_file, row)
    assert "(7.0 measured + " in plan_chain(recipe, "train", "train").leaving[0]


def test_preemption_has_its_grace_before(make_recipe: MakeRecipe, slurm: Pretended) -> None:
    slurm.configure("KillWait = 30 sec\nPreemptType = preempt/partition_prio\nPreemptMode = REQUEUE\n")
    recipe = make_recipe("cluster.slurm.partition=low")
    (found,) = [window for window in windows(recipe) if "preemption" in window.what]
    assert found == Window("preemption (REQUEUE)", 120, "its partition's GraceTime 90 s and KillWait 30 s")
    slurm.configure("KillWait = 30 sec\nPreemptType = preempt/none\n")
    assert [window.what for window in windows(recipe)] == ["scancel", "the time limit"]
    slurm.configure("KillWait = 30 sec\nPreemptType = preempt/qos\nPreemptMode = OFF\n")
    (found,) = [w for w in windows(make_recipe("cluster.slurm.qos=cheap")) if "preemption" in w.what]
    assert found == Window("preemption (CANCEL)", 330, "its QOS's GraceTime 300 s and KillWait 30 s")
