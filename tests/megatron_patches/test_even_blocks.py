"""Weights in blocks of a few MiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.megatron_patches.small_run import at_step, train
from tests.ranks import run_ranks


def train_in_blocks(size: int, *flags: str) -> list[tuple[int, float]]:
    """`train` with blocks of `size` bytes."""
    from emma.megatron_patches import even_blocks

    even_blocks.BLOCK_BYTES = size
    return train(*flags)


@pytest.mark.parametrize("layers", [None, 3])
def test_blocks_are_views_that_cover_the_tensor(layers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from emma.megatron_patches import even_blocks

    monkeypatch.setattr(even_blocks, "BLOCK_BYTES", 1000)
    data = torch.arange(70 * 16, dtype=torch.float32).view(70, 16)
    place: dict[str, Any] = {} if layers is None else {"prepend_axis_num": 1}
    offsets = ((0, 1, 2),) if layers is None else ((0, 2, layers), (1, 1, 2))
    entry = ShardedTensor.from_rank_offsets("weight", data, *offsets, **place)
    assert even_blocks.is_large(entry)
    blocks = even_blocks.cut(entry)
    assert [block.data.numel() * 4 for block in blocks] == [15 * 64] * 4 + [10 * 64]
    stacked = () if layers is None else (2,)
    assert [block.global_offset for block in blocks] == [(*stacked, 70 + 15 * n, 0) for n in range(5)]
    assert {block.global_shape for block in blocks} == {entry.global_shape}
    assert torch.cat([block.data.view(-1, 16) for block in blocks]).equal(data)
    assert blocks[1].data.data_ptr() == data[15].data_ptr()
    monkeypatch.setattr(even_blocks, "BLOCK_BYTES", 70 * 64)
    assert not even_blocks.is_large(entry)


def test_a_run_saved_in_blocks_resumes_exactly_and_in_another_layout(tmp_path: Path) -> None:
    """Two data-parallel ranks save blocks; the same layout repeats the losses, read in blocks or not."""
    *_, whole = run_ranks(
        train_in_blocks,
        2,
        3000,
        "--save",
        str(tmp_path),
        "--save-interval",
        "4",
        "--ckpt-fully-parallel-load",
    )
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(str(tmp_path / "iter_0000004")).read_metadata().state_dict_metadata
    chunks = stored["decoder.layers.mlp.linear_fc1.weight"].chunks
    assert max(chunk.sizes.numel() * 4 for chunk in chunks) <= 3000
    load = ["--load", at_step(tmp_path, 4), "--ckpt-fully-parallel-load"]
    for size in (3000, 2**24):
        *_, resumed = run_ranks(train_in_blocks, 2, size, *load)
        assert resumed == whole[4:]
