"""Norms that multiply by 1 + weight, in the local implementation, which refuses them."""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH"]

NEW = Target("megatron.core.transformer.torch_norm:WrappedTorchNorm.__new__")


def condition(machine: Machine) -> Decision:
    """Always on: it is not known yet whether a model will have such norms."""
    return Decision(True, "takes effect for models whose configuration centres norms at zero")


def install() -> None:
    """Wraps the factory, above the wrapper that allows sequence parallelism."""
    plain = NEW.get()

    def new(cls: Any, config: Any, hidden_size: int, eps: float = 1e-5, *args: Any, **kwargs: Any) -> Any:
        if not config.layernorm_zero_centered_gamma:
            return plain(cls, config, hidden_size, eps, *args, **kwargs)
        if config.normalization != "RMSNorm":
            raise ValueError(f"zero-centred {config.normalization}: only RMSNorm is patched")
        norm = _norm(hidden_size, eps)
        if config.sequence_parallel:
            # As in sequence_parallel_norm: gradients are summed over the tensor-parallel ranks.
            norm.weight.sequence_parallel = True
        return norm

    NEW.replace(staticmethod(new))


def _norm(hidden_size: int, eps: float) -> Any:
    import torch

    class ZeroCentredRMSNorm(torch.nn.Module):
        """x · rsqrt(mean x² + ε) · (1 + weight), in FP32 as transformers computes it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(hidden_size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            whole = x.float()
            normed = whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + eps)
            return (normed * (1.0 + self.weight.float())).to(x.dtype)

    return ZeroCentredRMSNorm()


PATCH = Patch(
    name="zero-centred-norm",
    targets=(NEW,),
    versions={"megatron-core": ("0.19.2",)},
    reason="WrappedTorchNorm asserts that layernorm_zero_centered_gamma is off",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/transformer/torch_norm.py",
    condition=condition,
    install=install,
)
