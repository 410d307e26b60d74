"""What a chain still needs, decided without Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.commands.slurm import group
from emma.slurm.submit import plan_chain
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.conftest import MakeRecipe
from tests.tools.runs.test_checkpoints import save

pytestmark = pytest.mark.usefixtures("without_slurm")


def test_the_whole_chain_in_its_order(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("cluster.slurm.stages.pack={tasks: 4}")
    chain = plan_chain(recipe, links=2)
    after = {link.key: (link.after_ok, link.after_any) for link in chain.links}
    assert after == {
        "pack": ((), ()),
        "pack-finish": (("pack",), ()),
        "mix": (("pack-finish",), ()),
        "train-1": (("mix",), ()),
        "train-2": (("mix",), ("train-1",)),
        "convert": (("train-2",), ()),
        "evaluate": (("convert",), ()),
        "release": (("evaluate",), ()),
    }
    assert chain.settled == {}


def test_what_is_done_is_left_out(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    write_json(Path("store/monolingual/manifest.json"), {})
    write_json(Path("mix/small/manifest.json"), {})
    chain = plan_chain(recipe)
    assert chain.settled == {"pack": "done", "mix": "done"} and chain.links[0].key == "train"
    assert chain.links[0].after_ok == ()


def test_a_finished_run_needs_no_text_and_no_tokens(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(ready=False)
    save(RunFolder(recipe.run_folder).checkpoints, recipe.schedule.steps)
    chain = plan_chain(recipe)
    assert chain.settled == {
        "pack": "not needed: train is done",
        "mix": "not needed: train is done",
        "train": "done",
    }
    assert [link.key for link in chain.links] == ["convert", "evaluate", "release"]
    write_json(recipe.run_folder / "evaluation" / "results.parquet", {})
    write_json(recipe.run_folder / "release" / "manifest.json", {})
    assert plan_chain(recipe).links == ()


def test_more_links_if_the_time_needs_them(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emma.slurm.submit.check_room", lambda recipe, stages: None)
    big = [
        "cluster={nodes: 1, gpus_per_node: 8, device: h100}",
        "precision.compute=bf16",
        "model=llama3_8b",
        "parallelism={tensor: 2, sequence: true}",
    ]
    big += ["batch={micro: 1, global: 1024, sequence_length: 8192}", "schedule.steps=1000"]
    chain = plan_chain(make_recipe(*big), "train", "train")
    assert chain.plan is not None and chain.plan.time is not None
    hours = chain.plan.time.days * 24
    assert -(-hours // ((24 - 1 / 6) * 0.9)) == 2 == len(chain.links), hours
    assert chain.gpu_hours == len(chain.links) * 24 * 8
    short = plan_chain(make_recipe(*big, "cluster.slurm.time_limit=01:00:00"), "train", "train")
    assert len(short.links) == 3, "the last one requeues itself; dozens would only fill the queue"
    assert short.gpu_hours == pytest.approx(hours * 8)
    fewer = plan_chain(make_recipe(*big), "train", "train", links=1)
    assert fewer.gpu_hours == pytest.approx(hours * 8), "the last link requeues itself"


@pytest.mark.parametrize(
    ("overrides", "first", "message"),
    [
        ((), "pack", r"corpus/split/monolingual: no such folder.*run the corpus stage"),
        (
            ("data.pack.components.monolingual.inputs=['text/*.jsonl']",),
            "pack",
            r"text/\*\.jsonl",
        ),
        ((), "mix", "the token store does not exist.*--from pack"),
        ((), "train", "the mix does not exist.*--from mix"),
        ((), "convert", "the last checkpoint does not exist.*--from train"),
        ((), "release", "the exported model does not exist.*--from convert"),
        (("start={mode: weights, checkpoint: nowhere}",), "train", "does not exist"),
        (("cluster.slurm.venv=/nowhere",), "train", "cluster.slurm.venv: /nowhere has no bin/activate"),
    ],
)
def test_missing_inputs_are_reported_with_their_fix(
    overrides: tuple[str, ...], first: str, message: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(*overrides, ready="venv" in "".join(overrides))
    with pytest.raises(UserError, match=message):
        plan_chain(recipe, first)  # type: ignore[arg-type]


def test_a_missing_base_model_is_found_before_the_text_is_packed(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"start\.checkpoint: nowhere does not exist.*hf-to-megatron"):
        plan_chain(make_recipe("start={mode: weights, checkpoint: nowhere}"))


def test_a_run_that_does_not_fit_its_devices_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match="GiB"):
        plan_chain(
            make_recipe(
                "cluster={nodes: 1, gpus_per_node: 1, device: h100}",
                "precision.compute=bf16",
                "model=llama3_8b",
            ),
            "train",
            "train",
        )


def test_gpu_hours_above_the_limit_need_confirmation(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    arguments = ["submit", str(tmp_path / "small.yaml"), "--only", "train", "precision.compute=bf16"]
    arguments += ["cluster={nodes: 2, gpus_per_node: 4, device: h100, launcher: srun}", "batch.global=16"]
    answer = CliRunner().invoke(group, arguments)
    assert isinstance(answer.exception, UserError)
    assert "can use 192 GPU-hours, more than the 100" in str(answer.exception) and "--yes" in str(
        answer.exception
    )


def test_a_dry_run_prints_the_script_and_writes_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    answer = CliRunner().invoke(group, ["submit", str(tmp_path / "small.yaml"), "--dry-run", "--links", "2"])
    assert answer.exit_code == 0, answer.output
    for text in (
        "#SBATCH --nodes=1",
        "emma.tools.training.worker",
        "emma mix build",
        "emma release model",
        "# train-2 starts after the success of mix and the end of train-1",
    ):
        assert text in answer.output
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_shows_the_scripts_although_they_would_be_refused(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    make_recipe(ready=False)
    arguments = [
        "submit",
        str(tmp_path / "small.yaml"),
        "--dry-run",
        "start={mode: weights, checkpoint: nowhere}",
    ]
    answer = CliRunner().invoke(group, arguments, standalone_mode=False)
    assert answer.return_value == 2 and "emma.tools.training.worker" in answer.stdout
    assert "corpus/split/monolingual: no such folder" in answer.stderr
    assert "nowhere does not exist. Fix: import" in answer.stderr


def test_a_store_that_holds_only_a_note_is_none(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(ready=False)
    Path("store").mkdir()
    Path("store/.pack.submitted.json").touch()
    with pytest.raises(UserError, match=r"the token store is empty\. Fix: submit --from pack"):
        plan_chain(recipe, "mix", "mix")
