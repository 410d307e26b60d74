"""Resuming the distributed optimizer over torch's AdamW: three faults, and exact losses without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emma.megatron_patches import torch_adam_resume
from tests.megatron_patches.conftest import Reference
from tests.megatron_patches.small_run import apply_without, at_step, furthest, train
from tests.ranks import RanksError, run_ranks


def train_with_fixes(fixed: list[str], *flags: str) -> list[tuple[int, float]]:
    """Runs `train` with only the named faults of the three fixed; start it with patched=False."""
    apply_without("torch-adam-resume")
    targets = {target.path.rpartition(".")[2]: target for target in torch_adam_resume.PATCH.targets}
    before = {name: target.get() for name, target in targets.items()}
    torch_adam_resume.install()
    for name in targets.keys() - set(fixed):
        targets[name].replace(before[name])
    return train(*flags)


@pytest.mark.parametrize(
    ("fixed", "error"),
    [
        ([], "assert len\\(steps\\) == 1"),
        (["state_dict"], "KeyError: 'step'"),
    ],
)
def test_loading_fails_while_the_first_faults_remain(
    fixed: list[str], error: str, reference: Reference
) -> None:
    with pytest.raises(RanksError, match=error):
        run_ranks(train_with_fixes, 1, fixed, "--load", str(reference.folder), patched=False)


def test_losses_diverge_while_the_last_fault_remains(reference: Reference) -> None:
    fixed = ["state_dict", "_set_main_param_and_optimizer_states"]
    (losses,) = run_ranks(train_with_fixes, 1, fixed, "--load", str(reference.folder), patched=False)
    assert losses[0] == reference.second_half[0]
    assert furthest(losses, reference.second_half) > 1e-3


def test_resumed_losses_are_the_uninterrupted_ones_to_the_last_digit(reference: Reference) -> None:
    (losses,) = run_ranks(train, 1, "--load", str(reference.folder))
    assert losses == reference.second_half


@pytest.mark.parametrize(
    "layout", ["", "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"]
)
def test_losses_continue_after_resuming_with_another_layout(layout: str, reference: Reference) -> None:
    # Without flags two ranks are two data-parallel replicas.
    *_, losses = run_ranks(train, 2, *layout.split(), "--load", str(reference.folder))
    assert furthest(losses, reference.second_half) < 1e-4


def train_after_asking_for_state(*flags: str) -> list[tuple[int, float]]:
    """Asks the optimizer for its state before the first step, as a checkpoint at step 0 does."""
    from megatron.training import training

    build = training.setup_model_and_optimizer

    def build_and_ask(*args: Any, **kwargs: Any) -> Any:
        model, optimizer, scheduler = build(*args, **kwargs)
        optimizer.state_dict()
        return model, optimizer, scheduler

    training.setup_model_and_optimizer = build_and_ask
    return train(*flags)


def test_asking_a_fresh_optimizer_for_its_state_changes_nothing(reference: Reference) -> None:
    (losses,) = run_ranks(train_after_asking_for_state, 1, "--train-iters", "3")
    assert losses == reference.losses[:3]


@pytest.mark.slow
def test_two_by_two_ranks_resume_exactly_and_reshard(tmp_path: Path) -> None:
    layout = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
    *_, whole = run_ranks(train, 4, *layout, "--save", str(tmp_path), "--save-interval", "4", timeout=300)
    load = ["--load", at_step(tmp_path, 4)]
    *_, same = run_ranks(train, 4, *layout, *load, timeout=300)
    assert same == whole[4:]
    *_, other = run_ranks(train, 2, "--pipeline-model-parallel-size", "2", *load, timeout=300)
    assert furthest(other, whole[4:]) < 1e-4
