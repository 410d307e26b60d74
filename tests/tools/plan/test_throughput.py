"""Expected speed against what was published."""

from __future__ import annotations

import math

import pytest

from emma.recipes.load import load_recipe
from emma.tools.plan.published import Measurement, measurements
from emma.tools.plan.throughput import UNCERTAINTY, expected_throughput


@pytest.mark.parametrize(
    "measurement", [m for m in measurements() if m.tokens_per_second], ids=lambda m: m.source
)
def test_estimate_is_near_what_was_measured(measurement: Measurement) -> None:
    throughput = expected_throughput(measurement.recipe())
    assert throughput is not None
    assert throughput.tokens_per_second_per_gpu == pytest.approx(measurement.tokens_per_second, rel=0.08)
    assert UNCERTAINTY > 0.08


def test_measured_speed_replaces_the_estimate() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["cluster.device=a100"])
    throughput = expected_throughput(recipe, 3000.0)
    assert throughput is not None
    assert throughput.tokens_per_second_per_gpu == 3000
    assert throughput.tflops_causal == pytest.approx(154.4, abs=0.1)
    assert throughput.mfu == pytest.approx(154.4 / 312, abs=0.001)
    assert throughput.assumptions == ()


def test_nothing_is_claimed_without_a_published_figure() -> None:
    assert expected_throughput(load_recipe("emma_llama3_8b_bi", ["precision=fp32"])) is None
    assert expected_throughput(load_recipe("emma_llama3_8b_bi", ["layout=local_cpu"])) is None
    measured = expected_throughput(load_recipe("emma_llama3_8b_bi", ["layout=local_cpu"]), 100.0)
    assert measured is not None and measured.mfu is None
    blockwise = expected_throughput(load_recipe("emma_llama3_8b_bi", ["precision=fp8_blockwise"]))
    assert blockwise is not None
    assert any("blockwise" in text for text in blockwise.assumptions)


def test_what_costs_speed() -> None:
    def speed(*overrides: str) -> float:
        throughput = expected_throughput(load_recipe("emma_llama3_8b_bi", overrides))
        assert throughput is not None
        return throughput.tokens_per_second_per_gpu

    base = speed()
    assert speed("parallelism.recompute=full") == pytest.approx(base / 1.31, rel=0.01)
    # Causal attention is 6.4 of 51.5 GFLOP, the feed-forward parts are 33.8.
    selective = speed("parallelism.recompute=selective")
    assert selective == pytest.approx(base / (1 + 6.44 / 3 / 51.5), rel=1e-3)
    mlp = speed("parallelism.recompute=selective", "parallelism.recompute_modules=[mlp]")
    assert mlp == pytest.approx(base / (1 + 33.8 / 3 / 51.5), rel=1e-3)
    assert speed("parallelism.offload_layers=4") == base
    assert speed("batch.micro=1") < base
    assert speed("parallelism.pipeline=2", "batch.document_masking=false") < base
    stages = ("parallelism.pipeline=4", "batch.micro=1")
    assert speed(*stages, "parallelism.virtual_pipeline=4") > speed(*stages)
    assert speed("layout=h100_512_bf16") < base
    assert speed("layout=h100_64_fp8") > 1.3 * base
    like_for_like = speed("precision.grad_reduce_fp32=false", "batch.document_masking=false")
    assert like_for_like == pytest.approx(base * 10682 / 8563, rel=0.001)
    assert speed("precision.grad_reduce_fp32=false") == speed("batch.document_masking=false") == base


def test_bubble_is_the_textbooks() -> None:
    throughput = expected_throughput(
        load_recipe("emma_llama3_8b_bi", ["parallelism.pipeline=4", "batch.micro=1"])
    )
    assert throughput is not None
    # 2,048 sequences over 8 data-parallel ranks: 256 micro-batches.
    assert throughput.bubble == pytest.approx(3 / (256 + 3))


def test_what_a_run_pays_for_adds_up_to_its_speed() -> None:
    """From the like-for-like shape to a production run, cost by cost."""
    paid = {}
    for layout in ("h100_64_bf16_like_for_like", "h100_64_bf16"):
        throughput = expected_throughput(load_recipe("emma_llama3_8b_bi", [f"layout={layout}"]))
        assert throughput is not None
        paid[layout] = {cost.what: cost.factor for cost in throughput.costs if cost.what}
        share = throughput.mfu
        assert share == pytest.approx(0.556 * math.prod(paid[layout].values()), rel=1e-3)
    # A hundredth for each doubling beyond a node of eight.
    assert paid["h100_64_bf16_like_for_like"] == {"64 GPUs": pytest.approx(0.97)}
    assert list(paid["h100_64_bf16"])[:2] == [
        "a production run: FP32 gradient sums, masked documents, real data",
        "tensor parallelism 2",
    ]


@pytest.mark.parametrize(
    ("layout", "gb_per_s"), [("tensor: 1, context: 2", 300), ("tensor: 8, context: 2", 33)]
)
def test_masked_context_parallelism_pays_for_its_exchange(layout: str, gb_per_s: float) -> None:
    """32 layers send 32 queries, 8 keys and values, and 32 outputs of 128 channels, twice a step; half stays. Between nodes,
    eight groups of keys over 8 × 2 ranks go to two ranks each."""
    overrides = [f"parallelism={{{layout}, sequence: {str('8' in layout).lower()}}}", "batch.micro=1"]
    throughput = expected_throughput(load_recipe("emma_llama3_8b_bi", overrides))
    assert throughput is not None
    (cost,) = [cost for cost in throughput.costs if "context" in cost.what]
    heads = 2 * 32 + 2 * 8 * (2 if gb_per_s < 300 else 1)
    sent = 2 * 32 * heads * 128 * 2 / 2
    assert cost.factor == pytest.approx(1 / (1 + 10_688 * sent / (gb_per_s * 1e9)), rel=1e-3)
    assert cost.assumed and "not measured" in cost.source
