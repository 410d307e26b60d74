"""Norms that multiply by 1 + weight compute what transformers computes, and are marked for sequence parallelism."""

from __future__ import annotations

from tests.ranks import run_ranks


def _compare() -> tuple[float, bool, bool, str]:
    from types import SimpleNamespace

    import torch
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    def config(zero: bool, sequence: bool) -> SimpleNamespace:
        return SimpleNamespace(
            layernorm_zero_centered_gamma=zero,
            sequence_parallel=sequence,
            persist_layer_norm=False,
            memory_efficient_layer_norm=False,
            normalization="RMSNorm",
        )

    torch.manual_seed(0)
    ours, theirs = WrappedTorchNorm(config(True, False), 48, eps=1e-5), Gemma3RMSNorm(48, eps=1e-5)
    with torch.no_grad():
        ours.weight.uniform_(-0.5, 0.5)
        theirs.weight.copy_(ours.weight)
    x = torch.randn(5, 2, 48)
    marked = WrappedTorchNorm(config(True, True), 48).weight
    plain = WrappedTorchNorm(config(False, False), 48)
    return (
        (ours(x) - theirs(x)).abs().max().item(),
        getattr(marked, "sequence_parallel", False),
        hasattr(ours.weight, "sequence_parallel"),
        type(plain).__name__,
    )


def test_it_is_transformers_norm() -> None:
    ((difference, marked, unmarked, plain),) = run_ranks(_compare, 1)
    assert difference < 1e-6
    assert marked and not unmarked
    assert plain == "RMSNorm"
