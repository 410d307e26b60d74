"""Bytes and host memory of checkpoints by hand."""

from __future__ import annotations

import pytest

from emma.recipes.load import load_recipe
from emma.tools.arithmetic.traffic import checkpoint_traffic, stage_shares

WEIGHTS = 8_030_261_248 / 2  # of Llama 3 8B, at tensor-parallel size 2


def test_bytes_of_a_rank_fall_with_the_number_of_ranks() -> None:
    traffic = {
        gpus: checkpoint_traffic(load_recipe("emma_llama3_8b_bi", [f"layout=h100_{gpus}_bf16"]), 5)
        for gpus in (8, 64, 512)
    }
    for gpus, found in traffic.items():
        share = WEIGHTS * 14 / (gpus / 2) / 2**30
        assert found.written_gib == pytest.approx(share, rel=0.001)
        assert found.verified_gib == pytest.approx(share, rel=0.001)
        # Besides the data: headers, and the table of contents, which does not fall.
        assert share < found.read_gib < 1.02 * share
        assert found.read_gib - share > 1.03 * found.contents_gib > 0
        # All bytes twice, to verify and to load, at 5 GB/s.
        assert found.seconds_to_load == pytest.approx(2 * 112.4 / 5, rel=0.001)
    assert traffic[512].written_gib == pytest.approx(traffic[8].written_gib / 64)


def test_host_memory_of_a_rank() -> None:
    found = checkpoint_traffic(load_recipe("emma_llama3_8b_bi"), 5)
    assert found.host_save_gib == pytest.approx(WEIGHTS * 14 / 32 / 2**30, rel=0.001)
    assert found.host_load_gib == pytest.approx(WEIGHTS * 12 / 32 / 2**30, rel=0.001)
    assert found.node_save_gib == pytest.approx(8 * found.host_save_gib)
    # Four instances of the optimizer: each of 64 shards is on four ranks, and each holds it.
    found = checkpoint_traffic(load_recipe("emma_llama3_8b_bi", ["layout=h100_512_bf16"]), 5)
    assert found.host_load_gib == pytest.approx(WEIGHTS * 12 / 64 / 2**30, rel=0.001)
    behind = checkpoint_traffic(load_recipe("emma_llama3_8b_bi", ["checkpoint.asynchronous=true"]), 5)
    assert behind.host_save_gib == pytest.approx(WEIGHTS * 14 / 32 / 2**30 + 0.66, rel=0.001)


def test_shares_follow_the_stage_and_the_formats() -> None:
    first, last = (
        stage_shares(load_recipe("emma_llama3_8b_bi", ["parallelism.pipeline=2", "batch.micro=1"]), stage)
        for stage in (0, 1)
    )
    # The last stage has the last norm besides.
    assert 0 < last.states - first.states < 12 * 4096
    whole = load_recipe("emma_llama3_8b_bi", ["layout=local_cpu", "parallelism.distributed_optimizer=false"])
    assert stage_shares(whole, 0).states / stage_shares(whole, 0).weights == pytest.approx(2)
