"""Saving and loading the distributed optimizer by the rows of each rank's shard."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from emma.megatron_patches.optimizer_rows import shares_of
from tests.megatron_patches.rows_on_ranks import held_bytes, misplaced, save_and_load
from tests.megatron_patches.small_run import apply_without, at_step, train
from tests.ranks import run_ranks


def test_every_element_and_every_row_has_one_rank() -> None:
    generator = random.Random(0)
    for _ in range(500):
        width, rows = generator.randint(1, 9), generator.randint(1, 30)
        shard, bucket = generator.randint(1, 60), generator.randint(0, 100)
        start = bucket + generator.randint(0, 80)
        shares = shares_of(start, start + rows * width, bucket, shard, width)
        by_element = [share.rank for share in shares for _ in range(share.start, share.end)]
        assert by_element == [(start + number - bucket) // shard for number in range(rows * width)]
        by_row = [share.rank for share in shares for _ in range(share.first, share.last)]
        assert by_row == [by_element[row * width] for row in range(rows)]
        for share in shares:
            # Its beginning belongs to whoever has the row's first element; the rest are its own rows.
            if share.start % width:
                assert share.owner == by_row[share.start // width]
                assert share.head_size(width) == min(share.end, share.first * width) - share.start > 0
            else:
                assert share.owner is None


# Ranks, NCCL's flag, width, instances. Width 60: rows that no shard ends with; three ranks and the flag pad buckets, and
# so do widths that are no multiples.
PADDED = [
    (1, True, 50, 1),
    (2, True, 60, 1),
    (3, False, 64, 1),
    (3, True, 130, 1),
    (2, False, 33, 1),
    (4, True, 130, 2),
]


@pytest.mark.parametrize(("ranks", "pad", "width", "instances"), PADDED)
def test_padded_buckets_are_saved_and_loaded_bit_for_bit(
    ranks: int, pad: bool, width: int, instances: int
) -> None:
    for found in run_ranks(save_and_load, ranks, 3, pad, width, instances):
        assert found["buckets"] >= 3
        assert found["padding"] > 0
        assert (found["wrong"], found["gaps"], found["changed"]) == (0, 0, 0)


def stock_save(*options: object) -> int:
    """Parameters that Megatron itself would save from the wrong place (NVIDIA/Megatron-LM#5077). Start it with
    patched=False."""
    apply_without("optimizer-rows")
    return misplaced(*options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ranks", "pad", "width", "instances"), [PADDED[0], PADDED[2]])
def test_without_the_patch_most_parameters_are_others(
    ranks: int, pad: bool, width: int, instances: int
) -> None:
    assert min(run_ranks(stock_save, ranks, 3, pad, width, instances, patched=False)) > 10


def save_and_load_without(*options: object) -> object:
    """Start it with patched=False."""
    apply_without("optimizer-rows")
    return held_bytes(*options)  # type: ignore[arg-type]


def test_a_rank_holds_its_share_and_without_the_patch_everything() -> None:
    for held, whole in run_ranks(held_bytes, 4, 1, False, 64):
        # A row more or less where shards meet.
        assert held == pytest.approx(whole / 4, rel=0.02)
    for held, whole in run_ranks(save_and_load_without, 4, 1, False, 64, patched=False):
        assert held >= whole


STOCK = ("optimizer-rows", "even-blocks", "exact-reads")


def train_stock(*flags: str) -> list[tuple[int, float]]:
    """`train` with Megatron's own saving and loading; start it with patched=False."""
    apply_without(*STOCK)
    return train(*flags)


@pytest.mark.slow
def test_checkpoints_of_stock_megatron_and_of_the_patches_are_the_same(tmp_path: Path) -> None:
    """Either loads what the other saved, at the same layout to the last digit."""
    save = ("--save", str(tmp_path), "--save-interval", "4")
    *_, whole = run_ranks(train_stock, 2, *save, patched=False)
    load = ("--load", at_step(tmp_path, 4), "--ckpt-fully-parallel-load")
    *_, resumed = run_ranks(train, 2, *load)
    assert resumed == whole[4:]
    *_, whole = run_ranks(train, 2, *save)
    *_, resumed = run_ranks(train_stock, 2, "--load", at_step(tmp_path, 4), patched=False)
    assert resumed == whole[4:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "--num-distributed-optimizer-instances 2",
        "--pipeline-model-parallel-size 2",
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
        "--tensor-model-parallel-size 4 --num-query-groups 4",
    ],
)
def test_layouts_resume_exactly(layout: str, tmp_path: Path) -> None:
    flags = [*layout.split(), "--ckpt-fully-parallel-load"]
    *_, whole = run_ranks(train, 4, *flags, "--save", str(tmp_path), "--save-interval", "4", timeout=300)
    *_, resumed = run_ranks(train, 4, *flags, "--load", at_step(tmp_path, 4), timeout=300)
    assert resumed == whole[4:]


@pytest.mark.slow
def test_tied_embeddings_on_two_stages_resume_exactly(tmp_path: Path) -> None:
    flags = ["--pipeline-model-parallel-size", "2", "--ckpt-fully-parallel-load"]
    *_, whole = run_ranks(train_tied, 4, *flags, "--save", str(tmp_path), "--save-interval", "4", timeout=300)
    *_, resumed = run_ranks(train_tied, 4, *flags, "--load", at_step(tmp_path, 4), timeout=300)
    assert resumed == whole[4:]


def train_tied(*flags: str) -> list[tuple[int, float]]:
    """`train` with one table for the input and the output."""
    from tests.megatron_patches import small_run

    small_run.FLAGS = small_run.FLAGS.replace("--untie-embeddings-and-output-weights", "")
    return train(*flags)
