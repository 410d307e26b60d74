"""Main weights kept as BF16 weights and 16 bits more: whole in a checkpoint, cut again when loaded.

Transformer Engine's optimizer needs a GPU. `Remainders` does here what its methods `get_unscaled_state` and
`set_scaled_state` do with such a state; Megatron's methods are the real ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from emma.megatron_patches.param_remainders import joined, split
from tests.ranks import run_ranks


def numbers() -> torch.Tensor:
    """FP32 numbers of every kind, and every lower half below three upper halves."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(-(2**31), 2**31, (100_000,), generator=generator, dtype=torch.int64).int()
    lower = torch.arange(2**16, dtype=torch.int32)
    every = [(upper << 16) + lower for upper in (0x3C23, -0x43DD, 0x0000)]
    special = torch.tensor([0, -(2**31), 0x7F7FFFFF, 0x7F800000, 1], dtype=torch.int32)
    return torch.cat([some, *every, special]).view(torch.float32)


def test_nothing_is_lost_and_the_weight_is_the_nearest() -> None:
    main = numbers()
    weight, remainder = split(main)
    assert weight.dtype == torch.bfloat16 and remainder.dtype == torch.int16
    assert torch.equal(joined(weight, remainder).view(torch.int32), main.view(torch.int32))
    finite = main.isfinite() & weight.isfinite()
    nearest = main.bfloat16()
    middle = (main.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(weight[finite & ~middle], nearest[finite & ~middle])
    assert (weight.float().abs() >= main.abs())[finite & middle].all()  # away from zero


class Remainders:
    """The share of one parameter, as an optimizer that has trained it keeps it."""

    def __init__(self, main: torch.Tensor) -> None:
        weight, remainder = split(main)
        self.share = weight
        self.param_groups = [{"params": [self.share]}]
        self.state = {self.share: {"master_param": remainder, "exp_avg": torch.ones_like(main)}}

    def get_unscaled_state(self, param: torch.Tensor, name: str) -> torch.Tensor:
        return self.state[param][name]

    def set_scaled_state(self, param: torch.Tensor, name: str, values: torch.Tensor) -> None:
        assert values.dtype == (torch.int16 if name == "master_param" else torch.float32)
        self.state[param][name].copy_(values)


def through_a_checkpoint(patched: bool) -> tuple[Any, Any, Any]:
    """In a rank: what a checkpoint holds of main weights, and weight and remainder after loading other ones."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    from emma.megatron_patches import param_remainders

    if patched:
        param_remainders.install()
    main = torch.linspace(-1, 1, 1000)
    inner = Remainders(main)
    owner: Any = SimpleNamespace(
        optimizer=inner,
        model_param_group_index_map={"weight": (0, 0)},
        config=SimpleNamespace(use_precision_aware_optimizer_no_fp8_or_ds_fp8=True),
    )
    saved = DistributedOptimizer._get_main_param_and_optimizer_states(owner, "weight")["param"]
    loaded = {"param": main * 3, "exp_avg": main}
    try:
        DistributedOptimizer._set_main_param_and_optimizer_states(owner, "weight", loaded)
    except AssertionError:
        return saved.tolist(), None, None
    return saved.tolist(), inner.share.float().tolist(), inner.state[inner.share]["master_param"].tolist()


def test_a_checkpoint_holds_whole_weights_and_gives_them_back() -> None:
    ((saved, share, remainder),) = run_ranks(through_a_checkpoint, 1, True)
    main = torch.linspace(-1, 1, 1000)
    assert saved == main.tolist()
    weight, lower = split(main * 3)
    assert share == weight.float().tolist() and remainder == lower.tolist()


def test_without_the_patch_it_holds_integers_and_cannot_be_loaded() -> None:
    ((saved, share, _),) = run_ranks(through_a_checkpoint, 1, False)
    assert sum(abs(value) > 1000 for value in saved) > 500 and share is None
