"""The look at each save: what it lets pass, what it refuses, and what it says, with Megatron's real loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.run_folder import RunFolder
from tests.megatron_patches.rows_on_ranks import small_optimizer
from tests.ranks import Outcome, run_ranks, start_ranks
from tests.tools.training.conftest import Small
from tests.tools.training.test_padded_resume import BF16, SAMPLES, SEVERAL
from tests.training_run import rank_environment

THREE = ("cluster.gpus_per_node=3", "megatron_args={ddp-bucket-size: 20000}", "validation.groups=[]")


def without_patch(folder: str, look: bool) -> None:
    """In a rank: a launch that saves by stock Megatron's offsets, wrong where buckets are padded, with the look at saves
    or without."""
    from emma.megatron_patches import registry
    from emma.tools.training.worker import train

    registry.MODULES = tuple(name for name in registry.MODULES if name != "optimizer_rows")
    registry.apply()
    if not look:
        from emma.tools.training.session.saved_weights import SavedWeights

        del SavedWeights.train
    train(Path(folder))


def launched(recipe: Any, look: bool) -> tuple[RunFolder, list[Outcome]]:
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe, take_over=True)
    job = start_ranks(
        without_patch,
        recipe.cluster.world_size,
        str(run.path),
        look,
        env=rank_environment(recipe) | launch.environment,
        patched=False,
    )
    return run, job.outcomes(timeout=240)


def test_a_save_from_wrong_places_is_refused(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(6).recipe("misplaced", *SAMPLES, *THREE, f"parallelism={{{SEVERAL}}}", BF16)
    run, outcomes = launched(recipe, look=True)
    assert all(outcome.exit_code for outcome in outcomes) and not complete_steps(run.checkpoints)
    said = outcomes[0].output
    assert "would hold main weights that do not round to the model's: " in said
    assert "Nothing is written; the checkpoint before is whole" in said
    assert not list(run.path.rglob("*.distcp"))


def only_padding(pad: bool) -> str | None:
    """In a rank: why a checkpoint by bucket could not be written."""
    from emma.tools.training.session.saved_weights import _only_padding

    _, optimizer = small_optimizer(3, pad, 50, step=False)
    return _only_padding(optimizer)


def test_a_share_of_nothing_but_padding_is_refused_where_states_are_saved_by_bucket() -> None:
    assert run_ranks(only_padding, 2, False) == [None, None]
    first, second = run_ranks(only_padding, 2, True)
    assert first is None
    assert second is not None and second.startswith("rank 1 holds nothing but padding of gradient bucket 0")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resume", "phase", "weights"])
def test_a_checkpoint_that_was_saved_wrongly_starts_nothing(
    mode: str, make_small: Callable[[int], Small]
) -> None:
    """As checkpoints of plain Megatron are, where gradient buckets are padded."""
    settings = (*SAMPLES, *THREE, f"parallelism={{{SEVERAL}}}", BF16)
    run, outcomes = launched(make_small(6).recipe(f"wrong-{mode}", *settings), look=False)
    assert not any(outcome.exit_code for outcome in outcomes) and complete_steps(run.checkpoints) == [4, 8]
    start = f"start={{mode: {mode}, checkpoint: '{run.path}', step: 4}}"
    again, outcomes = launched(make_small(6).recipe(f"after-{mode}", *settings, start), look=True)
    assert all(outcome.exit_code for outcome in outcomes) and not again.metrics_file.exists()
    assert "do not round to the model's weights; the first is number" in outcomes[0].output
    assert "The optimizer state is not this model's" in outcomes[0].output
