"""The state of a run between launches."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.load import load_recipe
from emma.tools.runs.claim import Claim
from emma.tools.runs.run_folder import RunFolder
from tests.small_recipe import small_recipe
from tests.tools.runs.test_checkpoints import save


def test_prepare_writes_what_the_ranks_and_the_reader_need(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe)
    assert run.read_launch() == launch and launch.number == 1 and launch.load.mode == "scratch"
    assert load_recipe(run.path).sha256 == recipe.sha256
    facts = read_json(run.environment_file)
    assert facts["versions"]["megatron-core"] == "0.19.2" and facts["patches"] and len(facts["launches"]) == 1
    assert run.holds_claim(launch)


def test_the_next_launch_resumes_from_the_latest_complete_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    save(run.checkpoints, 5)
    save(run.checkpoints, 10, complete=False)
    launch = run.prepare(recipe)
    assert (launch.number, launch.load.mode, launch.load.step) == (2, "resume", 5)
    assert "passing over checkpoint iter_0000010: complete.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("schedule.learning_rate=1e-3", "schedule.learning_rate"),
        ("batch.global=16", "batch.global"),
        ("model.norm_epsilon=1e-6", "model.norm_epsilon"),
        ("data.mix.seed=5", "data.mix.seed"),
        ("optimizer.beta2=0.99", "optimizer.beta2"),
    ],
)
def test_another_recipe_is_refused_under_the_same_name(tmp_path: Path, override: str, key: str) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    with pytest.raises(UserError, match=rf"this run has {key} = .*start\.mode=phase"):
        run.prepare(small_recipe(tmp_path, [override]))


def test_layout_and_logging_may_change_between_launches(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    changed = ["cluster.gpus_per_node=4", "parallelism.tensor=2", "batch.micro=2", "logging.interval=5"]
    run.prepare(small_recipe(tmp_path, changed))
    assert load_recipe(run.path).parallelism.tensor == 2


def test_a_harmless_argument_of_megatron_may_come_later_and_is_recorded(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    run.release_claim(run.prepare(small_recipe(tmp_path, ['megatron_args={"log-throughput": true}'])))
    run.prepare(small_recipe(tmp_path, ['megatron_args={"num-workers": 2}', "logging.interval=5"]))
    first, second, third = read_json(run.environment_file)["launches"]
    assert [launch["megatron_args"] for launch in (first, second, third)] == [
        {},
        {"log-throughput": True},
        {"num-workers": 2},
    ]
    assert (first["changed"], second["changed"]) == (
        {},
        {"megatron_args.log-throughput": ["not set", "True"]},
    )
    assert third["changed"] == {
        "logging.interval": ["1", "5"],
        "megatron_args.log-throughput": ["True", "not set"],
        "megatron_args.num-workers": ["not set", "2"],
    }


def test_a_refused_argument_of_megatron_is_named_with_both_values(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    with pytest.raises(
        UserError, match=r"has megatron_args\.adam-eps = not set, but the recipe now says 1e-05"
    ):
        run.prepare(small_recipe(tmp_path, ['megatron_args={"log-throughput": true, "adam-eps": 1e-5}']))
    assert load_recipe(run.path).megatron_args == {}


def test_two_live_writers_are_refused(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    first = run.prepare(recipe)  # claimed by this process, which is alive
    with pytest.raises(
        UserError, match=rf"process {os.getpid()} of .* on .* has been writing this run .*--take-over"
    ):
        run.prepare(recipe)
    second = run.prepare(recipe, take_over=True)
    assert run.holds_claim(second) and not run.holds_claim(first)
    run.release_claim(first)
    assert run.holds_claim(second), "an older launch must not remove the claim of a newer one"


def test_the_claim_of_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    claim = replace(Claim.of_this_process(2, "process"), pid=int(dead.stdout))
    # In another container on this host, the same number may be a live process.
    write_json(run.claims.file(2), asdict(replace(claim, pid_namespace="pid:[1]")))
    with pytest.raises(UserError, match="--take-over"):
        run.prepare(recipe)
    write_json(run.claims.file(2), asdict(replace(claim, host="another")))
    with pytest.raises(UserError, match="on another has been writing this run"):
        run.prepare(recipe)
    write_json(run.claims.file(2), asdict(claim))
    assert run.prepare(recipe).number == 3
