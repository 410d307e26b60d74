"""A small model under Megatron's distributed optimizer, for the ranks of `tests/ranks.py`: several gradient buckets,
padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["held_bytes", "misplaced", "save_and_load", "small_optimizer"]


def small_optimizer(
    buckets: int, pad: bool, width: int, instances: int = 1, *, step: bool = True
) -> tuple[Any, Any]:
    """A model of linear layers and norms, after one step if asked for, and its optimizer."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer import TransformerConfig

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        1, 1, num_distributed_optimizer_instances=instances, create_gloo_process_groups=True
    )
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(
            torch.nn.Linear(width, 3 * width),
            torch.nn.LayerNorm(3 * width),
            torch.nn.Linear(3 * width, width),
        )
        for _ in range(4)
    ]
    model = torch.nn.Sequential(*layers).bfloat16()
    total = sum(parameter.numel() for parameter in model.parameters())
    config = TransformerConfig(
        num_layers=1, hidden_size=width, num_attention_heads=1, bf16=True, params_dtype=torch.bfloat16
    )
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=True,
            bucket_size=total // buckets,
            pad_buckets_for_high_nccl_busbw=pad,
            num_distributed_optimizer_instances=instances,
        ),
        model,
    )
    chained = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-2, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True
        ),
        [wrapped],
    )
    if not step:
        return model, chained.chained_optimizers[0]
    wrapped.zero_grad_buffer()
    for parameter in model.parameters():
        parameter.main_grad.copy_(torch.randn_like(parameter.main_grad))
    if (
        instances == 1
    ):  # the gradients are the same on all ranks; between instances, Megatron needs CUDA's streams
        wrapped.start_grad_sync()
        wrapped.finish_grad_sync()
    chained.step()
    return model, chained.chained_optimizers[0]


def _state(model: Any, optimizer: Any, **options: Any) -> Any:
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    sharded = {
        name: ShardedTensor.from_rank_offsets(
            name, parameter, replica_id=(0, 0, torch.distributed.get_rank())
        )
        for name, parameter in model.named_parameters()
    }
    kind = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
    }
    return optimizer.sharded_param_state_fully_reshardable(sharded, metadata=kind, **options)


def _pieces(state: Any) -> Iterator[Any]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    return (entry for entry in nested_values(state) if isinstance(entry, ShardedTensor))


def held_bytes(buckets: int, pad: bool, width: int) -> tuple[int, int]:
    """Bytes of host memory in the state that this rank would save, and bytes of all optimizer states."""
    model, optimizer = small_optimizer(buckets, pad, width)
    storages = {
        piece.data.untyped_storage().data_ptr(): piece.data.untyped_storage().nbytes()
        for piece in _pieces(_state(model, optimizer))
    }
    return sum(storages.values()), 12 * sum(parameter.numel() for parameter in model.parameters())


def misplaced(buckets: int, pad: bool, width: int, instances: int) -> int:
    """Parameters whose main weights, as this rank would save them whole, do not round to the model's."""
    import torch

    model, optimizer = small_optimizer(buckets, pad, width, instances)
    saved = {piece.key: piece.data for piece in _pieces(_state(model, optimizer))}
    return sum(
        not torch.equal(
            saved[f"optimizer.state.param.{name}"].bfloat16().reshape(parameter.shape), parameter.data
        )
        for name, parameter in model.named_parameters()
    )


def save_and_load(buckets: int, pad: bool, width: int, instances: int = 1) -> dict[str, Any]:
    """What the ranks' pieces add up to, and what the optimizer holds after it has been emptied and loaded from them.

    Returns:
        `buckets` and `padding` of the gradient buffer; `wrong`: parameters whose saved main weights do not round to
        the model's; `gaps`: elements that no rank saved or two did; `changed`: optimizer states that a load changed.
    """
    import torch

    model, optimizer = small_optimizer(buckets, pad, width, instances)
    ranks = torch.distributed.get_world_size()
    gathered: list[Any] = [None] * ranks
    # Instances of the optimizer hold copies, and Megatron writes the first one's.
    mine = [
        (piece.key, piece.global_offset, piece.data)
        for piece in _pieces(_state(model, optimizer))
        if instances == 1 or piece.replica_id[-1] == 0
    ]
    torch.distributed.all_gather_object(gathered, mine)
    everything = [piece for rank in gathered for piece in rank]
    parameters = dict(model.named_parameters())
    whole = {
        f"optimizer.state.{key}.{name}": torch.zeros(parameter.shape)
        for name, parameter in parameters.items()
        for key in ("param", "exp_avg", "exp_avg_sq")
    }
    times = {key: torch.zeros_like(value) for key, value in whole.items()}
    for key, offset, data in everything:
        whole[key][offset[0] : offset[0] + len(data)] = data
        times[key][offset[0] : offset[0] + len(data)] += 1
    wrong = sum(
        not torch.equal(whole[f"optimizer.state.param.{name}"].bfloat16(), parameter.data)
        for name, parameter in parameters.items()
    )
    inner = optimizer.optimizer
    held = [
        tensor
        for group in inner.param_groups
        for parameter in group["params"]
        for tensor in (parameter, inner.state[parameter]["exp_avg"], inner.state[parameter]["exp_avg_sq"])
    ]
    before = [tensor.detach().clone() for tensor in held]
    for tensor in held:
        tensor.data.fill_(float("nan"))
    state = _state(model, optimizer, is_loading=True)
    for piece in _pieces(state):
        first = piece.global_offset[0]
        piece.data.copy_(whole[piece.key][first : first + len(piece.data)])

    def values(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: values(value) for key, value in entry.items()}
        return getattr(entry, "data", None) if hasattr(entry, "global_offset") else entry.unwrap()

    optimizer.load_parameter_state_from_fully_reshardable(values(state))
    (buffer,) = optimizer.buffers
    return {
        "buckets": len(buffer.buckets),
        "padding": buffer.grad_data.numel() - sum(parameter.numel() for parameter in parameters.values()),
        "wrong": wrong,
        "gaps": sum(int((value != 1).sum()) for value in times.values()),
        "changed": sum(not torch.equal(a, b) for a, b in zip(before, held, strict=True)),
    }
