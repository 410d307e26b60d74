"""Reading the parts of stored blocks that are needed."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest

from emma.megatron_patches.exact_reads import box_to_read
from tests.megatron_patches.small_run import apply_without
from tests.ranks import run_ranks

SIZES = (3, 70, 4096)


def test_a_box_holds_what_is_wanted_in_runs_that_are_long_enough() -> None:
    generator = random.Random(0)
    for _ in range(300):
        sizes = [generator.randint(1, 40) for _ in range(generator.randint(1, 4))]
        offsets = [generator.randrange(size) for size in sizes]
        lengths = [generator.randint(1, size - offset) for size, offset in zip(sizes, offsets, strict=True)]
        axis, first, box = box_to_read(sizes, offsets, lengths, 8)
        assert all(f <= o and o + n <= f + b for f, o, n, b in zip(first, offsets, lengths, box, strict=True))
        assert (first[: axis + 1], box[: axis + 1]) == (offsets[: axis + 1], lengths[: axis + 1])
        assert box[axis + 1 :] == sizes[axis + 1 :]
        assert axis == 0 or math.prod(box[axis:]) * 8 >= 512 or math.prod(box) == math.prod(lengths)


def load_part(folder: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[bool, int]:
    """Saves a tensor in one block, loads a part of it; whether it is right, and bytes read meanwhile."""
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    torch.distributed.init_process_group("gloo")
    whole = torch.arange(math.prod(SIZES), dtype=torch.float32).view(SIZES)
    Path(folder).mkdir(parents=True)
    dist_checkpointing.save({"weight": ShardedTensor.from_rank_offsets("weight", whole)}, folder)
    part = torch.full(shape, -1.0)
    wanted = ShardedTensor("weight", part, torch.float32, shape, SIZES, offset, None, (0, 0, 0))
    counter = Path("/proc/self/io")
    before = int(counter.read_text().split()[1])
    loaded = dist_checkpointing.load({"weight": wanted}, folder, validate_access_integrity=False)
    read = int(counter.read_text().split()[1]) - before
    place = tuple(slice(first, first + length) for first, length in zip(offset, shape, strict=True))
    return bool(torch.equal(loaded["weight"], whole[place])), read


def load_part_without(*arguments: Any) -> tuple[bool, int]:
    """Start it with patched=False."""
    apply_without("exact-reads")
    return load_part(*arguments)


# Offset, shape, and what is read as a multiple of what is wanted: runs below 512 bytes are read with their rows.
PARTS = {
    "rows": ((1, 10, 0), (1, 30, 4096), 1),
    "wide columns": ((0, 0, 2048), (3, 70, 2048), 1),
    "layers": ((1, 0, 0), (2, 70, 4096), 1),
    "columns": ((2, 0, 512), (1, 70, 256), 1),
    "narrow columns": ((2, 0, 512), (1, 70, 64), 64),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_costs_its_own_bytes(part: str, tmp_path: Path) -> None:
    offset, shape, times = PARTS[part]
    ((right, read),) = run_ranks(load_part, 1, str(tmp_path / "with"), offset, shape)
    wanted = math.prod(shape) * 4
    assert right
    # Besides the data: the table of contents and the archives' headers.
    assert wanted * times <= read < wanted * times + 40_000
    if part == "rows":
        ((right, read),) = run_ranks(
            load_part_without, 1, str(tmp_path / "without"), offset, shape, patched=False
        )
        assert right and read > math.prod(SIZES) * 4


def test_all_parts_of_a_block_add_up_to_it() -> None:
    for first, second in itertools.pairwise((0, 256, 512)):
        axis, offsets, lengths = box_to_read((4096, 512), (0, first), (4096, second - first), 2)
        assert (axis, offsets, lengths) == (1, [0, first], [4096, 256])
