"""Steps that go wrong, and imports that are wrong, with Megatron's real loop on CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.errors import UserError
from recipes.files import read_json
from recipes.schema import Recipe
from tests.ranks import RanksError, run_ranks
from tests.tools.training.conftest import Small
from tests.training_run import losses, rank, train_run
from tools.training.checkpoints import complete_steps
from tools.training.launch import compute_reference, rank_environment
from tools.training.run_folder import RunFolder
from tools.training.safety import Rewind, record_skip, recorded_skips, spoilt

TWO = ("cluster.gpus_per_node=2", "parallelism={tensor: 2}")


def poisoned_rank(folder: str, step: int) -> None:
    """A rank whose loss at one step is not a number, as from a broken batch."""
    import torch
    from megatron.training import get_args

    from tools.training import forward

    original = forward.loss_sum

    def poisoned(mask: torch.Tensor, output: torch.Tensor) -> object:
        if output.requires_grad and get_args().curr_iteration == step - 1:
            output = output * float("nan")
        return original(mask, output)

    forward.loss_sum = poisoned  # type: ignore[assignment]
    rank(folder)


def launch(recipe: Recipe, step: int) -> RunFolder:
    run = RunFolder(recipe.run_folder)
    run.prepare(recipe, take_over=True)
    run_ranks(poisoned_rank, 2, str(run.path), step, env=rank_environment(recipe), timeout=240)
    return run


def test_a_batch_that_gives_nan_is_undone_and_skipped(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(10).recipe("poisoned", *TWO)
    run = launch(recipe, 7)
    assert read_json(run.state_file)["state"] == "rewind"
    assert [record["step"] for record in recorded_skips(run.skipped_file)] == [7]
    assert complete_steps(run.checkpoints) == [5] and max(losses(run)) == 6
    before = losses(run)
    launch(recipe, 7)  # the batch would still be poisoned: it is not trained on
    assert read_json(run.state_file)["state"] == "finished"
    after = losses(run)
    assert sorted(after) == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert all(after[step] == before[step] for step in before)
    assert all(value < 20 for value in after.values())


def test_named_steps_are_skipped_and_the_last_checkpoint_still_written(
    make_small: Callable[[int], Small],
) -> None:
    run = train_run(make_small(10).recipe("named", "safety.skip_steps=[3, 10]"))
    assert sorted(losses(run)) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert complete_steps(run.checkpoints) == [5, 10]


def test_a_spike_counts_as_spoilt_where_the_recipe_says() -> None:
    assert spoilt(3.0, None) is None and spoilt(None, 1.0) is None
    assert spoilt(float("inf"), None) == "the gradient norm is inf"
    assert spoilt(3.0, 2.0) == "the gradient norm 3 is above safety.max_grad_norm 2"


def test_going_back_too_often_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "skipped.json"
    record_skip(path, Rewind(3, "the gradient norm is nan"), launch=1, allowed=2)
    record_skip(path, Rewind(4, "the gradient norm is nan"), launch=2, allowed=2)
    with pytest.raises(UserError, match=r"gone back 3 times \(steps 3, 4, 5\), safety\.rewinds allows 2"):
        record_skip(path, Rewind(5, "the gradient norm is nan"), launch=3, allowed=2)


def test_a_full_disk_stops_the_save_before_it_begins(
    make_small: Callable[[int], Small],
) -> None:
    recipe = make_small(10).recipe("full", "checkpoint.interval=5")
    run = RunFolder(recipe.run_folder)
    run.prepare(recipe)
    with pytest.raises(
        RanksError, match=r"the checkpoint of step 5 needs .* GiB are free; nothing is written"
    ):
        run_ranks(rank_on_a_full_disk, 1, str(run.path), env=rank_environment(recipe), timeout=120)
    assert not list(run.checkpoints.glob("iter_*"))


def rank_on_a_full_disk(folder: str) -> None:
    """A rank that sees a disk with 1 KiB free."""
    total, used, _ = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(total, used, 1024)  # type: ignore[assignment, attr-defined]
    rank(folder)


def referenced(small: Small, base_model: Path, name: str, checkpoint: Path) -> Recipe:
    start = (
        f"{{mode: weights, checkpoint: '{checkpoint}', reference: '{base_model}', reference_tolerance: 1e-4}}"
    )
    return small.recipe(name, *TWO, f"start={start}")


def test_the_first_loss_must_be_the_base_models(make_small: Callable[[int], Small], base_model: Path) -> None:
    small = make_small(10)
    recipe = referenced(small, base_model, "referenced", small.base)
    run = RunFolder(recipe.run_folder)
    compute_reference(recipe, run, run.prepare(recipe))
    assert len(read_json(run.reference_file)["losses"]) > 1
    train_run(recipe)
    assert sorted(losses(run)) == list(range(1, 11))


def test_perturbed_weights_are_not_trained(
    make_small: Callable[[int], Small], base_model: Path, tmp_path: Path
) -> None:
    """One tensor of the base scaled by 1.5: it loads, and would train."""
    import torch
    from safetensors.torch import load_file, save_file

    from checkpoints_conversion.hf_to_megatron import convert

    wrong = tmp_path / "wrong"
    shutil.copytree(base_model, wrong)
    tensors = load_file(wrong / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] * torch.tensor(1.5)
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    convert(wrong, tmp_path / "imported")
    small = make_small(10)
    recipe = referenced(small, base_model, "perturbed", tmp_path / "imported")
    run = RunFolder(recipe.run_folder)
    compute_reference(recipe, run, run.prepare(recipe))
    with pytest.raises(RanksError, match=r"differs from that of .*Nothing was trained"):
        train_run(recipe)
    assert losses(run) == {} and complete_steps(run.checkpoints) == []
