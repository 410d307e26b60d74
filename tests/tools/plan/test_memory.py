"""Memory against the published measurements, against Megatron's formula, and by its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.recipes.load import load_recipe
from emma.tools.plan.memory import GIB, estimate_memory, host_memory, memory_limit, stage_memory
from emma.tools.plan.published import Measurement, comparison, measurements
from emma.tools.plan.theory import megatron_formula_gib

MEASURED = measurements()


@pytest.mark.parametrize("measurement", [m for m in MEASURED if m.memory_gb], ids=lambda m: m.source)
def test_estimate_is_within_3_percent_of_what_was_measured(measurement: Measurement) -> None:
    assert measurement.memory_gb is not None
    assert measurement.memory().total * GIB / 1e9 == pytest.approx(measurement.memory_gb, rel=0.03)


@pytest.mark.parametrize("measurement", MEASURED, ids=lambda m: m.source)
def test_estimate_says_what_fitted_and_what_did_not(measurement: Measurement) -> None:
    limit = memory_limit(measurement.recipe())
    assert limit is not None
    assert (measurement.memory().total <= limit) == measurement.fits


# GPUs → GiB by Megatron's formula: TP1 with FP32 and BF16 gradients, the same with CP2, and TP2 with FP32
# gradients.
FORMULA = {
    8: (92.1, 77.2, 74.1, 59.2, 51.7),
    32: (83.7, 68.8, 65.7, 50.7, 43.3),
    64: (82.3, 67.4, 64.3, 49.3, 41.9),
    512: (81.1, 66.1, 63.1, 48.1, 40.6),
}


@pytest.mark.parametrize("gpus", FORMULA)
def test_formula_is_megatrons(gpus: int) -> None:
    layouts = [(1, 1, True), (1, 1, False), (1, 2, True), (1, 2, False), (2, 1, True)]
    values = []
    for tensor, context, fp32 in layouts:
        recipe = load_recipe(
            "emma_llama3_8b_bi",
            [
                f"layout=h100_{gpus}_bf16",
                "batch.micro=1",
                "batch.document_masking=false",
                "parallelism.distributed_optimizer_instances=1",
                f"parallelism.tensor={tensor}",
                f"parallelism.sequence={str(tensor > 1).lower()}",
                f"parallelism.context={context}",
                f"precision.grad_reduce_fp32={str(fp32).lower()}",
            ],
        )
        values.append(megatron_formula_gib(recipe))
        # Cards report more than the formula, by what it leaves out.
        assert 4 < estimate_memory(recipe).total - values[-1] < 20
    assert values == pytest.approx(FORMULA[gpus], abs=0.15)


def _memory(*overrides: str):  # type: ignore[no-untyped-def]
    return estimate_memory(load_recipe("emma_llama3_8b_bi", overrides))


def test_parts_by_hand() -> None:
    """TP2 SP, micro-batch 2, 32 data-parallel ranks, BF16 with FP32 gradients."""
    held = (8_030_261_248 - 65 * 4096) / 2 + 65 * 4096
    memory = _memory()
    assert memory.weights == pytest.approx(2 * held / GIB)
    assert memory.gradients == pytest.approx(4 * held / GIB)
    assert memory.optimizer == pytest.approx(12 * held / 32 / GIB)
    # A layer: 4 tensors of hidden size, Q and output, K and V, gate, up and their product; 2 bytes, halved by
    # TP2 SP.
    layer = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14_336) / 2
    assert memory.activations == pytest.approx(32 * layer * 2 * 8192 / GIB)
    assert memory.logits == pytest.approx(2 * 8192 * (6 * 128_256 + 2 * 2 * 4096) / 2 / GIB)


def test_optimizer_states_shrink_with_ranks_and_formats() -> None:
    base = _memory().optimizer
    assert _memory("layout=h100_128_bf16").optimizer == pytest.approx(base / 2)
    assert _memory("parallelism.distributed_optimizer_instances=4").optimizer == pytest.approx(4 * base)
    # BF16 moments, and of the FP32 weight only the half that the BF16 weight lacks: 6 bytes instead of 12.
    half = _memory("optimizer.exp_avg_dtype=bf16", "optimizer.exp_avg_sq_dtype=bf16")
    assert half.optimizer == pytest.approx(base / 2)
    plain = _memory("parallelism.distributed_optimizer=false", "parallelism.overlap_param_gather=false")
    assert plain.optimizer == pytest.approx(32 * base)


def test_recomputation_leaves_inputs() -> None:
    none = _memory()
    half = _memory("parallelism.recompute=full", "parallelism.recompute_layers=16")
    full = _memory("parallelism.recompute=full")
    assert none.activations > half.activations > full.activations
    inputs = 2 * 8192 * 4096 * 2 / 2 / GIB
    assert half.activations == pytest.approx(none.activations / 2 + 16 * inputs)
    assert full.activations == pytest.approx(none.activations / 32 + 32 * inputs)


def test_recomputed_feed_forward_parts_leave_their_inputs() -> None:
    none, mlp = _memory(), _memory("parallelism.recompute=selective", "parallelism.recompute_modules=[mlp]")
    # Gate, up and the input of down: 3 × 14,336 channels; the norm before them: 4,096. 2 bytes, 2 × 8,192 tokens, half
    # of both on each tensor-parallel rank.
    assert none.activations - mlp.activations == pytest.approx(
        32 * 2 * 8192 * 2 * (3 * 14336 + 4096) / 2 / GIB
    )
    both = _memory("parallelism.recompute=selective", "parallelism.recompute_modules=[core_attn, mlp]")
    assert both.activations == pytest.approx(mlp.activations), "fused attention keeps no scores"


def test_offloaded_layers_lie_in_host_memory() -> None:
    none, some = _memory(), _memory("parallelism.offload_layers=10")
    assert some.activations == pytest.approx(none.activations * (32 - 8) / 32)
    hosts = [
        host_memory(load_recipe("emma_llama3_8b_bi", [*given])).processes
        for given in ([], ["parallelism.offload_layers=10"])
    ]
    assert hosts[1] - hosts[0] == pytest.approx(8 * none.activations * 10 / 32)


def test_fp8_halves_weights_only_where_they_stay_in_fp8() -> None:
    bf16 = _memory()
    kept = _memory("precision=fp8_tensorwise")
    copied = _memory("precision=fp8_tensorwise", "precision.fp8_params=false")
    assert kept.weights == pytest.approx(bf16.weights)  # FP8 and its transpose are as large as BF16
    assert copied.weights > 1.8 * bf16.weights
    assert kept.activations < bf16.activations


def test_later_pipeline_stages_hold_fewer_micro_batches() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["parallelism.pipeline=4", "batch.micro=1"])
    stages = [stage_memory(recipe, stage) for stage in range(4)]
    first = stages[0].activations
    assert [stage.activations / first for stage in stages] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [stage.logits > 0 for stage in stages] == [False, False, False, True]
    assert estimate_memory(recipe).stage == 0
    # Interleaving starts more chunks before the first backward pass.
    interleaved = load_recipe(
        "emma_llama3_8b_bi", ["parallelism.pipeline=4", "parallelism.virtual_pipeline=2", "batch.micro=1"]
    )
    assert stage_memory(interleaved, 0).activations / first == pytest.approx((2 * 3 + 4 + 1) / 8)


def test_few_micro_batches_do_not_fill_the_pipeline() -> None:
    recipe = load_recipe(
        "emma_llama3_8b_bi", ["parallelism.pipeline=4", "batch.global=16", "cluster.nodes=8", "batch.micro=1"]
    )
    full = load_recipe("emma_llama3_8b_bi", ["parallelism.pipeline=4", "batch.micro=1"])
    assert stage_memory(recipe, 0).activations == pytest.approx(stage_memory(full, 0).activations / 2)


def test_a_cpus_memory_is_not_known() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["layout=local_cpu"])
    assert memory_limit(recipe) is None
    given = load_recipe("emma_llama3_8b_bi", ["layout=local_cpu", "cluster.memory_gib=24.0"])
    assert memory_limit(given) == pytest.approx(24 * 0.97)


def test_the_documentation_shows_the_current_comparison() -> None:
    text = (Path(__file__).parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
    assert comparison() in text


@pytest.mark.parametrize(
    ("changes", "queries", "keys"),
    [
        (["parallelism.tensor=2"], 1, 0),
        # Of four groups a tensor-parallel rank, each goes to two of eight ranks.
        (["parallelism.tensor=2", "parallelism.context=8"], 1, 2),
        (["parallelism.tensor=2", "precision=fp8_tensorwise"], 0, 0),
        (["parallelism.tensor=2", "parallelism.recompute=selective"], 0, 0),
    ],
)
def test_divided_heads_are_kept_before_and_after_the_exchange(
    changes: list[str], queries: int, keys: int
) -> None:
    layout = ["layout=h100_64_bf16", "parallelism.context=2", *changes]
    masked, unmasked = (
        load_recipe("emma_llama3_8b_bi", [*layout, f"batch.document_masking={value}"])
        for value in ("true", "false")
    )
    tokens = masked.batch.micro * 8192 // masked.parallelism.context
    more = 32 * tokens * 128 * 2 * (queries * 32 + keys * 8) / 2
    found = estimate_memory(masked).activations - estimate_memory(unmasked).activations
    assert found * GIB == pytest.approx(more)
