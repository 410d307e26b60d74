"""Steps that go wrong, and imports that are wrong, with Megatron's real loop on CPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.fence import Claims
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.safety import Rewind, record_skip, recorded_skips, spoilt
from emma.tools.training import reference
from emma.tools.training.launch import rank_environment
from tests.ranks import RanksError, run_ranks
from tests.tools.training.conftest import Small
from tests.training_run import losses, rank, train_run

TWO = ("cluster.gpus_per_node=2", "parallelism={tensor: 2}")


def write_reference(folder: str) -> None:
    """In a rank: what the launcher starts as a separate process (the slow test of the command takes that
    way)."""
    sys.exit(reference.main([folder]))


@pytest.fixture(scope="module")
def referenced(make_small: Callable[[int], Small], base_model: Path) -> Callable[..., Recipe]:
    """Makes recipes whose first loss must be the base model's, which is computed once."""
    small, computed = make_small(10), None

    def make(name: str, checkpoint: Path, *overrides: str) -> Recipe:
        nonlocal computed
        start = f"start={{mode: weights, checkpoint: '{checkpoint}', reference: '{base_model}', reference_tolerance: 1e-4}}"
        recipe = small.recipe(name, *TWO, start, *overrides)
        run = RunFolder(recipe.run_folder)
        run.prepare(recipe)
        if computed is None:
            run_ranks(write_reference, 1, str(run.path), patched=False)
            computed = read_json(run.reference_file)
            assert computed["model"] == str(base_model) and len(computed["losses"]) > 1
        write_json(run.reference_file, computed)
        return recipe

    return make


def poisoned_rank(folder: str, step: int) -> None:
    """A rank whose loss at one step is not a number, as from a broken batch."""
    import torch
    from megatron.training import get_args

    from emma.tools.training import forward

    original = forward.loss_sum

    def poisoned(mask: torch.Tensor, output: torch.Tensor) -> object:
        if output.requires_grad and get_args().curr_iteration == step - 1:
            output = output * float("nan")
        return original(mask, output)

    forward.loss_sum = poisoned  # type: ignore[assignment]
    rank(folder)


def launch(recipe: Recipe, step: int) -> RunFolder:
    run = RunFolder(recipe.run_folder)
    env = rank_environment(recipe) | run.prepare(recipe, take_over=True).environment
    run_ranks(poisoned_rank, 2, str(run.path), step, env=env, timeout=240)
    return run


def test_a_batch_that_gives_nan_is_undone_and_skipped_and_so_are_named_ones(
    make_small: Callable[[int], Small], referenced: Callable[[str, Path], Recipe]
) -> None:
    """Step 7 is found to be spoilt; 3 and 10 the recipe names, and the last checkpoint is written all the
    same."""
    small = make_small(10)
    recipe = referenced("poisoned", small.base, "safety.skip_steps=[3, 10]")
    run = launch(recipe, 7)
    # The base model's loss is the reference's, so training began at all.
    assert read_json(run.read_launch().state_file)["state"] == "rewind"
    assert [record["step"] for record in recorded_skips(run.skipped_file)] == [7]
    before = losses(run)
    assert complete_steps(run.checkpoints) == [5] and sorted(before) == [1, 2, 4, 5, 6]
    launch(recipe, 7)  # the batch would still be poisoned: it is not trained on
    assert read_json(run.read_launch().state_file)["state"] == "finished"
    after = losses(run)
    assert sorted(after) == [1, 2, 4, 5, 6, 8, 9]
    assert all(after[step] == before[step] for step in before)
    assert all(value < 20 for value in after.values())
    assert complete_steps(run.checkpoints) == [5, 10]


def test_a_spike_counts_as_spoilt_where_the_recipe_says() -> None:
    assert spoilt(3.0, None) is None and spoilt(None, 1.0) is None
    assert spoilt(float("inf"), None) == "the gradient norm is inf"
    assert spoilt(3.0, 2.0) == "the gradient norm 3 is above safety.max_grad_norm 2"


def test_going_back_too_often_stops_the_run(tmp_path: Path) -> None:
    path, fence = tmp_path / "skipped.json", Claims(tmp_path).take(lambda claim: None)
    record_skip(path, Rewind(3, "the gradient norm is nan"), fence, allowed=2)
    record_skip(path, Rewind(4, "the gradient norm is nan"), fence, allowed=2)
    with pytest.raises(UserError, match=r"gone back 3 times \(steps 3, 4, 5\), but safety\.rewinds allows 2"):
        record_skip(path, Rewind(5, "the gradient norm is nan"), fence, allowed=2)


def test_a_full_disk_stops_the_save_before_it_begins(
    make_small: Callable[[int], Small],
) -> None:
    recipe = make_small(10).recipe("full", "checkpoint.interval=5")
    run = RunFolder(recipe.run_folder)
    env = rank_environment(recipe) | run.prepare(recipe).environment
    with pytest.raises(
        RanksError,
        match=r"the checkpoint of step 5 needs [\d.]+ [kMG]B, but [\d.]+ k?B are free\. Nothing is written",
    ):
        run_ranks(rank_on_a_full_disk, 1, str(run.path), env=env, timeout=120)
    assert not list(run.checkpoints.glob("iter_*"))


def rank_on_a_full_disk(folder: str) -> None:
    """A rank that sees a disk with 1 KiB free."""
    total, used, _ = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(total, used, 1024)  # type: ignore[assignment, attr-defined]
    rank(folder)


def test_perturbed_weights_are_not_trained(
    referenced: Callable[..., Recipe], base_model: Path, tmp_path: Path
) -> None:
    """One tensor of the base scaled by 1.5: it loads, and would train."""
    import torch
    from safetensors.torch import load_file, save_file

    from emma.checkpoints_conversion.hf_to_megatron import convert

    wrong = tmp_path / "wrong"
    shutil.copytree(base_model, wrong)
    tensors = load_file(wrong / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] * torch.tensor(1.5)
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    convert(wrong, tmp_path / "imported")
    recipe = referenced("perturbed", tmp_path / "imported")
    run = RunFolder(recipe.run_folder)
    with pytest.raises(RanksError, match=r"differs from that of .*Nothing was trained"):
        train_run(recipe)
    assert losses(run) == {} and complete_steps(run.checkpoints) == []
