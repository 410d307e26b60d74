"""Weights are saved and loaded in blocks of a few MiB, dealt evenly over the data-parallel ranks.

Megatron deals whole tensors: one rank has an embedding to itself, however many ranks there are, so beyond some
dozens of ranks a save or load takes as long as the largest tensor. Here large tensors are first cut into blocks of
rows. The checkpoint's tensors stay the same; only the pieces that they are stored in are smaller.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["BLOCK_BYTES", "PATCH", "cut"]

BLOCK_BYTES = 16 * 2**20
"""The most that a block holds, unless one row is larger. A few seconds' worth of blocks keep 256 ranks busy with an
8B model (31 MiB of weights each at tensor-parallel size 2)."""

PARALLEL = "megatron.core.dist_checkpointing.strategies.fully_parallel"
SAVE = Target(
    f"{PARALLEL}:FullyParallelSaveStrategyWrapper.apply_saving_parallelization", "self sharded_state_dict"
)
LOAD = Target(
    f"{PARALLEL}:FullyParallelLoadStrategyWrapper.load",
    "self sharded_state_dict checkpoint_dir async_strategy",
)


def is_large(entry: Any) -> bool:
    """Whether `cut` would make several blocks of an entry of a sharded state."""
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    # A view of an FP8 tensor would be dequantised; such tensors stay whole.
    return (
        isinstance(entry, ShardedTensor)
        and type(entry.data) in (torch.Tensor, torch.nn.Parameter)
        and entry.data.dim() > 0
        and entry.data.is_contiguous()
        and len(entry.data) > 1
        and entry.data.numel() * entry.data.element_size() > BLOCK_BYTES
    )


def cut(entry: Any) -> list[Any]:
    """A ShardedTensor as ShardedTensors of its rows, at most BLOCK_BYTES each, whose data are views of its own."""
    data, axis = entry.data.detach(), entry.prepend_axis_num
    rows = max(1, BLOCK_BYTES // (data[0].numel() * data.element_size()))
    blocks = []
    for first in range(0, len(data), rows):
        part = data[first : first + rows]
        part = part.view((1,) * axis + tuple(part.shape))
        offset = list(entry.global_offset)
        offset[axis] += first
        blocks.append(
            replace(
                entry,
                data=part,
                local_shape=tuple(part.shape),
                global_offset=tuple(offset),
                axis_fragmentations=None,
                prepend_axis_num=0,
            )
        )
    return blocks


def install() -> None:
    """Wraps both strategies that deal tensors to ranks."""
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, nested_values
    from megatron.core.utils import get_pg_size

    deal, load = SAVE.get(), LOAD.get()

    def deal_blocks(self: Any, sharded_state_dict: Any) -> None:
        if get_pg_size(self.parallelization_group) > 1:
            dict_list_map_inplace(
                lambda entry: dict(enumerate(cut(entry))) if is_large(entry) else entry, sharded_state_dict
            )
        deal(self, sharded_state_dict)

    def load_blocks(
        self: Any, sharded_state_dict: Any, checkpoint_dir: Any, async_strategy: str = "mcore"
    ) -> Any:
        if get_pg_size(self.parallelization_group) <= 1:
            return load(self, sharded_state_dict, checkpoint_dir, async_strategy)
        # Numbered, so that lists and dictionaries keep their places whatever becomes of their entries.
        numbered = dict(enumerate(nested_values(sharded_state_dict)))
        large = {number: entry for number, entry in numbered.items() if is_large(entry)}
        blocks = {number: dict(enumerate(cut(entry))) for number, entry in large.items()}
        views = {number: [block.data for block in parts.values()] for number, parts in blocks.items()}
        loaded = load(self, {**numbered, **blocks}, checkpoint_dir, async_strategy)
        for number, parts in views.items():
            for part, arrived in zip(parts, loaded[number].values(), strict=True):
                if arrived.data_ptr() != part.data_ptr():
                    part.copy_(arrived.view(part.shape))
            loaded[number] = large[number].data.detach()
        numbers = itertools.count()
        return dict_list_map_inplace(lambda _: loaded[next(numbers)], sharded_state_dict)

    SAVE.replace(deal_blocks)
    LOAD.replace(load_blocks)


PATCH = Patch(
    name="even-blocks",
    targets=(SAVE, LOAD),
    versions={"megatron-core": ("0.19.2",)},
    reason="whole tensors are dealt to ranks, so one rank reads or writes a whole embedding however many there are",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/dist_checkpointing/strategies/fully_parallel.py",
    condition=lambda machine: Decision(True, "Megatron deals whole tensors"),
    install=install,
)
