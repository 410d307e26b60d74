"""Time, energy and checkpoints by hand."""

from __future__ import annotations

import pytest

from emma.recipes.load import load_recipe
from emma.tools.arithmetic.cost import Assumptions, checkpoint_cost, expected_energy, expected_time
from emma.tools.arithmetic.traffic import planning_seconds


def test_time_and_energy() -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    assumptions = Assumptions(pue=1.5, grid_g_per_kwh=100, storage_gb_per_s=11.2423657472)
    time = expected_time(recipe, 8000.0, assumptions)
    step = 2**24 / (8000 * 64)
    assert time.seconds_per_step == pytest.approx(step)
    # 400 saves of 10 s, after the ranks have agreed on who saves what.
    saves = 4000 + 400 * planning_seconds(recipe)
    assert time.days == pytest.approx((40_000 * step + saves) / 86_400)
    assert time.gpu_hours == pytest.approx(time.days * 24 * 64)
    energy = expected_energy(recipe, time, assumptions)
    assert energy is not None
    assert energy.megawatt_hours == pytest.approx(time.gpu_hours * 1275 * 1.5 / 1e6)
    assert energy.co2_tonnes == pytest.approx(energy.megawatt_hours * 0.1)


def test_checkpoint_has_the_published_size() -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    cost = checkpoint_cost(recipe, 30.0, Assumptions())
    # swiss-ai: 105 GB for weights and FP32 Adam.
    assert cost.gib == pytest.approx(105, rel=0.01)
    assert (cost.saves, cost.kept) == (400, 8 + 3)
    assert cost.disk_gib == pytest.approx(12 * cost.gib)
    assert cost.minutes_between == pytest.approx(50)
    stall = cost.seconds + cost.planning_seconds
    assert cost.share_of_time == pytest.approx(stall / (3000 + stall))


def test_saving_in_the_background_blocks_for_the_copy_alone() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["checkpoint.asynchronous=true"])
    cost = checkpoint_cost(recipe, None, Assumptions())
    # The optimizer's share twice (from the device, to memory shared with the writer), the weights' once; on each of
    # 32 data-parallel ranks of half the model.
    copies = 8.030261248 / 2 * (2 + 12 + 12) / 32 / 10
    assert cost.seconds == pytest.approx(copies, rel=0.001)
    assert cost.planning_seconds == planning_seconds(recipe)
    # 705 blocks of weights, and 10,281 of states on 32 ranks; 12 µs to deal and 6 µs to read.
    assert planning_seconds(recipe) == pytest.approx((705 + 10_281 / 32) * (32 * 12e-6 + 64 * 6e-6), rel=0.01)
    assert cost.share_of_time is None
    gpus_512 = load_recipe("emma_llama3_8b_bi", ["layout=h100_512_bf16"])
    assert planning_seconds(gpus_512) > 3 * planning_seconds(recipe)


@pytest.mark.parametrize(
    ("overrides", "saves", "kept"),
    [
        (["checkpoint.keep=null", "checkpoint.keep_every=null"], 400, 400),
        (["checkpoint.keep_every=null"], 400, 3),
        (["schedule.steps=1050"], 11, 3),
    ],
)
def test_how_many_checkpoints_stay(overrides: list[str], saves: int, kept: int) -> None:
    cost = checkpoint_cost(load_recipe("emma_llama3_8b_bi", overrides), None, Assumptions())
    assert (cost.saves, cost.kept) == (saves, kept)


def test_a_cpus_power_is_not_stated() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["layout=local_cpu"])
    assert expected_energy(recipe, expected_time(recipe, 100.0, Assumptions()), Assumptions()) is None
