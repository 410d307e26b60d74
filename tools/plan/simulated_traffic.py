"""Bytes that every data-parallel rank of a simulated job would write and read, and the blocks they lie in.

Megatron lays out the gradient buffer and deals blocks to ranks, and the patches that a real save uses cut weights
and optimizer states; no tensor has memory and no rank runs. One process stands for a whole data-parallel group,
because the layout is the same on all its ranks.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["simulate_traffic"]

_STATES = ("param", "exp_avg", "exp_avg_sq")


def simulate_traffic(args: Any, chunks: list[Any], ddp_config: Any) -> dict[str, Any]:
    """What the data-parallel group of this process's rank moves at a save, and with the same layout at a resume.

    Args:
        args: Megatron's arguments.
        chunks: the model's chunks on this rank.
        ddp_config: Megatron's configuration of data parallelism.

    Returns:
        `bytes` and `blocks` of each rank of the group, and `rows`, the bytes of optimizer states that each holds in
        host memory.
    """
    import torch
    from megatron.core import mpu
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.exchange_utils import distribute_shards_to_ranks
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
    from megatron.core.utils import unwrap_model

    from emma.megatron_patches.even_blocks import cut, is_large
    from emma.megatron_patches.optimizer_rows import blocks_of

    ranks = mpu.get_data_parallel_world_size(with_context_parallel=True)
    shards = ranks // args.num_distributed_optimizer_instances
    holders: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    rows = [0] * ranks

    def add(entry: Any, held_by: list[int]) -> None:
        identity = (entry.key, tuple(entry.global_offset))
        if identity in holders:
            raise ValueError(f"two ranks have {entry.key} at {entry.global_offset}")
        holders[identity] = held_by
        sizes[identity] = entry.data.numel() * entry.data.element_size()

    models = [unwrap_model(chunk) for chunk in chunks]
    states = [model.sharded_state_dict() for model in models]
    optimizer = SimpleNamespace(
        buffers=[
            buffer
            for model in models
            for buffer in _buffers(list(model.parameters()), ddp_config, shards, ranks)
        ],
        data_parallel_group=SimpleNamespace(size=lambda: shards),
    )
    for blocks in blocks_of(optimizer, {"models": states}):
        for share in blocks.shares:
            owners = [share.rank + instance * shards for instance in range(ranks // shards)]
            values = torch.empty((share.last - share.first) * blocks.width, device="meta")
            for key in _STATES:
                for entry in blocks.pieces(key, share, values, 0):
                    add(entry, owners)
                    for owner in owners:
                        rows[owner] += entry.data.numel() * entry.data.element_size()
    apply_factories({"models": states})
    for entry in nested_values(states):
        if isinstance(entry, ShardedTensor):
            for part in cut(entry) if is_large(entry) else [entry]:
                add(part, list(range(ranks)))
    dealt = distribute_shards_to_ranks(holders, sizes, ranks, set())
    moved, counts = [0] * ranks, [0] * ranks
    for identity, rank in dealt.items():
        moved[rank] += sizes[identity]
        counts[rank] += 1
    return {"bytes": moved, "blocks": counts, "rows": rows}


def _buffers(parameters: list[Any], ddp_config: Any, shards: int, ranks: int) -> list[Any]:
    """Gradient buffers of a chunk as Megatron lays them out, without memory."""
    import torch
    from megatron.core import mpu
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.training.training import resolve_ddp_bucket_size

    group = SimpleNamespace(size=lambda: ranks)
    size = resolve_ddp_bucket_size(ddp_config, group, ddp_config.overlap_grad_reduce, 0)
    if mpu.get_pipeline_model_parallel_rank() > 0:
        size = None
    layout = DistributedOptimizer.compute_full_param_layout(parameters, size, shards, ddp_config)
    return [
        SimpleNamespace(
            param_index_map=each.param_index_map,
            buckets=[
                SimpleNamespace(offset=begin, grad_data=torch.empty(end - begin, device="meta"))
                for begin, end in each.bucket_indices
            ],
        )
        for each in layout.layouts.values()
    ]
