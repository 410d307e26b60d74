"""Saving the distributed optimizer where gradient buckets are padded: each parameter's main weights and moments must
be its own, in every shape of padding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from emma.megatron_patches.padded_buckets import gathered_ranges
from emma.megatron_patches.patch import PatchError
from tests.megatron_patches.small_run import apply_without
from tests.ranks import RanksError, run_ranks

STATES = ("param", "exp_avg", "exp_avg_sq")


def made(hidden: int, pad: bool, instances: int = 1, states: bool = True) -> tuple[Any, Any]:
    """A model whose buckets are cut often, and its optimizer; its main weights and moments are numbered if `states`."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer import TransformerConfig

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        1, 1, num_distributed_optimizer_instances=instances, create_gloo_process_groups=True
    )
    layers = [
        torch.nn.Sequential(
            torch.nn.Linear(hidden, 3 * hidden),
            torch.nn.LayerNorm(3 * hidden),
            torch.nn.Linear(3 * hidden, hidden),
        )
        for _ in range(6)
    ]
    config = TransformerConfig(
        num_layers=1, hidden_size=64, num_attention_heads=1, bf16=True, params_dtype=torch.bfloat16
    )
    model = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=True,
            # Several buckets; large enough that NCCL's padding leaves no rank without a parameter.
            bucket_size=8 * hidden**2,
            pad_buckets_for_high_nccl_busbw=pad,
            num_distributed_optimizer_instances=instances,
        ),
        torch.nn.Sequential(*layers).bfloat16(),
    )
    (optimizer,) = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-3, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True
        ),
        [model],
    ).chained_optimizers
    if states:
        optimizer.state_dict()  # makes the moments, by the patch torch-adam-resume
        number(model, optimizer)
    assert len(optimizer.buffers[0].buckets) > 2
    return model, optimizer


def numbers(model: Any) -> dict[str, Any]:
    """Another number for each element of the model, exact in FP32."""
    import torch

    found, first = {}, 1
    for name, parameter in model.module.named_parameters():
        found[name] = torch.arange(first, first + parameter.numel(), dtype=torch.float32)
        first += parameter.numel()
    return found


def shards(model: Any, optimizer: Any) -> list[tuple[str, slice, dict[str, Any]]]:
    """Of each parameter of this rank: its name, its range, and its states."""
    found = []
    for name, parameter in model.module.named_parameters():
        if parameter in optimizer.model_param_gbuf_map:
            own = optimizer._get_model_param_range_map(parameter)["param"]
            states = optimizer._get_main_param_and_optimizer_states(parameter)
            found.append((name, slice(own.start, own.end), states))
    return found


def number(model: Any, optimizer: Any, times: float = 1.0) -> None:
    wanted = numbers(model)
    for name, own, states in shards(model, optimizer):
        for factor, key in enumerate(STATES, 1):
            states[key].data.copy_(wanted[name][own] * factor * times)


def misplaced(hidden: int, pad: bool, instances: int, without: bool) -> tuple[int, int, int]:
    """In a rank: parameters with a state that is not theirs, as saved; states that are not back after loading; and
    elements of padding."""
    import torch
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    if without:
        apply_without("padded-buckets")
    model, optimizer = made(hidden, pad, instances)
    weights = {
        name: ShardedTensor.from_rank_offsets(name, parameter, replica_id=0)
        for name, parameter in model.module.named_parameters()
    }
    kind = {"distrib_optim_sharding_type": "fully_reshardable"}
    before = dict(optimizer.buffers[0].param_index_map)
    state = optimizer.sharded_state_dict(weights, metadata=kind)
    assert optimizer.buffers[0].param_index_map == before
    saved = {value.key: value.data for value in nested_values(state) if isinstance(value, ShardedTensor)}
    wanted = numbers(model)
    wrong = sum(
        not all(
            torch.equal(saved[f"optimizer.state.{key}.{name}"].flatten(), wanted[name] * factor)
            for factor, key in enumerate(STATES, 1)
        )
        for name in wanted
    )
    loaded = {
        number: {key: value.data for key, value in states.items()}
        for number, states in state["param_state"].items()
    }
    number(model, optimizer, times=0.0)
    optimizer.load_parameter_state_from_fully_reshardable(loaded)
    lost = sum(
        not torch.equal(states[key], wanted[name][own] * factor)
        for name, own, states in shards(model, optimizer)
        for factor, key in enumerate(STATES, 1)
    )
    buffer = optimizer.buffers[0]
    return wrong, lost, buffer.numel - buffer.numel_unpadded


PADDED = [
    # data-parallel ranks, hidden size, NCCL's flag, optimizer instances
    (1, 50, True, 1),
    (3, 64, False, 1),
    (3, 130, True, 1),
    (2, 33, False, 1),
    (4, 130, True, 2),
]


@pytest.mark.parametrize(("ranks", "hidden", "pad", "instances"), PADDED)
def test_each_parameter_is_saved_and_comes_back(ranks: int, hidden: int, pad: bool, instances: int) -> None:
    for wrong, lost, padding in run_ranks(misplaced, ranks, hidden, pad, instances, False):
        assert (wrong, lost) == (0, 0)
        assert padding, "nothing is padded here, so this shows nothing"


@pytest.mark.parametrize(("ranks", "hidden", "pad", "instances"), PADDED[:2])
def test_without_the_patch_most_are_others(ranks: int, hidden: int, pad: bool, instances: int) -> None:
    for wrong, lost, _ in run_ranks(misplaced, ranks, hidden, pad, instances, True, patched=False):
        assert wrong > 10 and lost > 10


def by_bucket(hidden: int, pad: bool) -> int:
    """In a rank: elements that the format by bucket (`dp_reshardable`) places where they do not belong."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    model, optimizer = made(hidden, pad)
    kind = {"distrib_optim_sharding_type": "dp_reshardable"}
    state = optimizer.sharded_state_dict({}, metadata=kind)["param_state"]
    (buffer,), wanted, wrong = optimizer.buffers, numbers(model), 0
    names = {parameter: name for name, parameter in model.module.named_parameters()}
    (buckets,) = state[0].values()
    for bucket, pieces in zip(buffer.buckets, buckets, strict=True):
        for piece in pieces:
            if piece["padding"].unwrap():
                continue
            tensor = piece["param"]
            assert isinstance(tensor, ShardedTensor)
            start = tensor.global_offset[0] + bucket.offset
            ((name, first),) = (
                (names[parameter], begin)
                for parameter, (begin, end, _) in buffer.param_index_map.items()
                if begin <= start < end
            )
            right = wanted[name][start - first : start - first + tensor.data.numel()]
            wrong += int((tensor.data != right).sum())
    return wrong


@pytest.mark.parametrize("pad", [False, True])
def test_the_format_by_bucket_needs_no_patch(pad: bool) -> None:
    assert run_ranks(by_bucket, 3, 130, pad) == [0, 0, 0]


def behind_another_patch() -> None:
    """In a rank: the patch is installed after one that has replaced Megatron's function."""
    from emma.megatron_patches import padded_buckets

    def cut(
        self: Any, model_sharded_state_dict: Any, is_loading: bool = False, metadata: Any = None
    ) -> None: ...

    padded_buckets.CUT.replace(cut)
    padded_buckets.install()


def test_another_patch_before_it_is_refused() -> None:
    with pytest.raises(RanksError, match=r"another patch has replaced .* this one must come before it"):
        run_ranks(behind_another_patch, 1, patched=False)


def test_a_parameter_outside_its_bucket_is_refused() -> None:
    buckets = [SimpleNamespace(offset=0, numel_unpadded=10), SimpleNamespace(offset=16, numel_unpadded=8)]
    good = {"a": (0, 10, 0), "b": (16, 20, 1), "c": (20, 24, 1)}
    found = gathered_ranges(SimpleNamespace(buckets=buckets, param_index_map=good))
    assert found == {"a": (0, 10, 0), "b": (10, 14, 1), "c": (14, 18, 1)} and list(found) == list(good)
    for place in [(9, 12, 0), (15, 18, 1), (20, 25, 1), (18, 17, 1)]:
        with pytest.raises(PatchError, match=r"padded-buckets.*not inside its bucket"):
            gathered_ranges(SimpleNamespace(buckets=buckets, param_index_map={"a": place}))
