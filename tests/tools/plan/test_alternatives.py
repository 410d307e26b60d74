"""Alternative layouts: those proposed work and fit, those refused say why."""

from __future__ import annotations

import pytest

from emma.base.errors import RecipeError
from emma.recipes.load import load_recipe
from emma.tools.plan.alternatives import alternatives, check_fits
from emma.tools.plan.memory import estimate_memory, memory_limit

SIZES = (8, 16, 32, 64, 128, 256, 512)
PRECISIONS = ("bf16", "fp8_tensorwise", "fp8_delayed", "fp8_blockwise")


@pytest.mark.parametrize("gpus", SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_proposal_exceeds_the_card(gpus: int, precision: str) -> None:
    recipe = load_recipe("emma_llama3_8b_bi", [f"layout=h100_{gpus}_bf16", f"precision={precision}"])
    check_fits(recipe)
    limit = memory_limit(recipe)
    assert limit is not None
    assert limit < 0.98 * 79.6
    found = alternatives(recipe)
    usable = [a for a in found if a.reason is None]
    assert usable
    assert all(a.memory_gib is not None and a.memory_gib <= limit for a in usable)
    assert all(a.reason for a in found if a not in usable)
    # Fastest first, context parallelism of masked documents last; the layout itself is among them.
    speeds = [(a.context > 1, -(a.tokens_per_second_per_gpu or 0)) for a in usable]
    assert speeds == sorted(speeds)
    assert any(not a.overrides(recipe) for a in usable)


@pytest.mark.parametrize("gpus", [8, 64])
def test_proposals_load_as_overrides_and_need_what_they_say(gpus: int) -> None:
    arguments = [f"layout=h100_{gpus}_fp8"]
    recipe = load_recipe("emma_llama3_8b_bi", arguments)
    for alternative in [a for a in alternatives(recipe) if a.reason is None][::5]:
        other = load_recipe("emma_llama3_8b_bi", [*arguments, *alternative.overrides(recipe)])
        assert estimate_memory(other).total == pytest.approx(alternative.memory_gib)
        check_fits(other)


def test_recomputes_as_few_layers_as_needed() -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    single = next(
        a for a in alternatives(recipe) if (a.tensor, a.pipeline, a.context, a.micro) == (1, 1, 1, 1)
    )
    assert 0 < single.recompute_layers < 32
    overrides = [*single.overrides(recipe), f"parallelism.recompute_layers={single.recompute_layers - 1}"]
    with pytest.raises(RecipeError, match="may be used"):
        check_fits(load_recipe("emma_llama3_8b_bi", overrides))


# Overrides that no H100 with 80 GB can hold; what the refusal proposes.
TOO_LARGE = [
    ["parallelism.tensor=1", "parallelism.sequence=false"],
    ["layout=h100_8_bf16", "batch.micro=2"],
    [
        "layout=h100_8_bf16",
        "parallelism.distributed_optimizer=false",
        "parallelism.overlap_param_gather=false",
    ],
    ["batch.micro=4"],
    ["batch.micro=32", "parallelism.recompute=full"],
    ["parallelism.sequence=false", "batch.micro=4"],
    ["parallelism.distributed_optimizer_instances=32", "batch.micro=2"],
    ["precision=fp32"],
    ["model=llama3.1_8b", "batch.sequence_length=32768", "batch.global=512"],
    ["layout=h100_8_fp8", "precision.fp8_params=false", "parallelism.tensor=1", "parallelism.sequence=false"],
    [
        "parallelism.pipeline=2",
        "parallelism.virtual_pipeline=4",
        "batch.micro=4",
        "batch.document_masking=false",
    ],
]


@pytest.mark.parametrize("overrides", TOO_LARGE, ids=" ".join)
def test_what_does_not_fit_is_refused_with_what_does(overrides: list[str]) -> None:
    recipe = load_recipe("emma_llama3_8b_bi", overrides)
    with pytest.raises(RecipeError) as caught:
        check_fits(recipe, "here:1")
    message = str(caught.value)
    assert message.startswith("here:1: parallelism: a GPU needs ")
    assert "77.2 may be used" in message
    fix = [word for word in caught.value.fix.split() if "=" in word]
    assert fix
    check_fits(load_recipe("emma_llama3_8b_bi", [*overrides, *fix]))


def test_a_refusal_says_when_nothing_fits() -> None:
    recipe = load_recipe(
        "emma_llama3_8b_bi",
        [
            "layout=h200_1_bf16",
            "cluster.device=h100",
            "parallelism.distributed_optimizer=false",
            "optimizer.exp_avg_dtype=fp32",
            "optimizer.exp_avg_sq_dtype=fp32",
        ],
    )
    with pytest.raises(RecipeError, match="no layout of this cluster fits"):
        check_fits(recipe)


def test_context_parallelism_is_offered_where_it_can_be() -> None:
    masked = [a for a in alternatives(load_recipe("emma_llama3_8b_bi")) if a.reason is None]
    contexts = [a.context for a in masked]
    assert contexts == sorted(contexts) and contexts[-1] == 2, "behind all that needs none"
    free = alternatives(load_recipe("emma_llama3_8b_bi", ["batch.document_masking=false"]))
    assert any(a.context == 2 and a.reason is None for a in free)


def test_one_h200_holds_8b() -> None:
    check_fits(load_recipe("emma_llama3_8b_bi", ["layout=h200_1_bf16"]))


def test_a_node_without_memory_for_its_ranks_checkpoints_is_refused() -> None:
    overrides = ["layout=h100_8_bf16", "cluster.host_memory_gib=140"]
    with pytest.raises(
        RecipeError, match=r"cluster.host_memory_gib: the ranks of a node need 137 GiB while they save"
    ):
        check_fits(load_recipe("emma_llama3_8b_bi", overrides))
    check_fits(load_recipe("emma_llama3_8b_bi", [*overrides[:1], "cluster.host_memory_gib=142"]))
