"""Training the embeddings alone: the other weights keep their bits, over launches, layouts and an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emma.base.errors import RecipeError
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.weights import open_weights
from emma.tools.runs.run_folder import RunFolder
from tests.ranks import run_ranks
from tests.tools.training.conftest import Small
from tests.training_run import rank, train_run

_ONLY = "train={only: [embeddings]}"
_TRAINED = {"model.embed_tokens.weight", "lm_head.weight"}


def _different(one: Path, other: Path) -> set[str]:
    """Parameters that differ between two checkpoints."""
    first, second = open_weights(one), open_weights(other)
    found = set()
    for name in parameter_shapes(first.shape):
        with first.open(name) as a, second.open(name) as b:
            if not torch.equal(a, b):
                found.add(name)
    return found


@pytest.mark.parametrize("layout", ["parallelism={tensor: 2}", "parallelism={pipeline: 2}"])
def test_only_the_embeddings_change(make_small: Callable[[int], Small], layout: str) -> None:
    small = make_small(4)
    two = ("cluster.gpus_per_node=2", layout, "checkpoint.interval=2", _ONLY)
    name = f"frozen-{layout.split('{')[1].split(':')[0]}"
    run = train_run(small.recipe(name, *two, "megatron_args={exit-interval: 2}"))
    run = train_run(small.recipe(name, *two))
    last = run.checkpoints / "iter_0000004"
    assert _different(small.base, last) == _TRAINED
    assert _different(run.checkpoints / "iter_0000002", last) == _TRAINED
    log = "".join(path.read_text(errors="ignore") for path in sorted(run.path.rglob("*.log")))
    assert "are as they were, bit for bit" in log or not log


def _untold(folder: str) -> None:
    """A rank whose optimizer was not told of the frozen group."""
    from emma.tools.training import frozen

    frozen.freeze_all_but = lambda only: None
    rank(folder)


def test_a_frozen_weight_that_changes_stops_the_run(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(4).recipe("untold", "checkpoint.interval=2", _ONLY)
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe, take_over=True)
    with pytest.raises(BaseException, match="is frozen"):
        run_ranks(_untold, 1, str(run.path), env=launch.environment)
    assert not list(run.checkpoints.glob("iter_*/complete.json"))


def test_a_phase_of_frozen_weights_is_refused(make_small: Callable[[int], Small]) -> None:
    with pytest.raises(RecipeError, match="moments"):
        make_small(4).recipe("phase", _ONLY, "start.mode=phase")


def test_a_recipe_without_the_key_keeps_its_fingerprint(make_small: Callable[[int], Small]) -> None:
    assert not {"train", "tokenizer_extension"} & make_small(4).recipe("plain").to_dict().keys()
