"""Megatron's torch norm refuses sequence parallelism, which the local implementation supports."""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH"]

NEW = Target(
    "megatron.core.transformer.torch_norm:WrappedTorchNorm.__new__",
    "cls config hidden_size eps persist_layer_norm zero_centered_gamma normalization",
)


def condition(machine: Machine) -> Decision:
    """Always on: it is not known yet whether a model will use the local implementation."""
    return Decision(True, "the local transformer implementation normalises with torch's modules")


def install() -> None:
    """Wraps the factory itself, since half a dozen modules import the class by name."""
    plain = NEW.get()

    def new(cls: Any, config: Any, hidden_size: int, *args: Any, **kwargs: Any) -> Any:
        if not config.sequence_parallel:
            return plain(cls, config, hidden_size, *args, **kwargs)
        norm = plain(cls, _Without(config), hidden_size, *args, **kwargs)
        for parameter in norm.parameters():
            # finalize_model_grads sums the gradients of parameters with this mark over the tensor-parallel ranks,
            # each of which has seen its own part of the sequence.
            parameter.sequence_parallel = True
        return norm

    class _Without:
        """The configuration with sequence_parallel switched off, for the check inside the factory."""

        sequence_parallel = False

        def __init__(self, config: Any) -> None:
            self._config = config

        def __getattr__(self, name: str) -> Any:
            return getattr(self._config, name)

    NEW.replace(staticmethod(new))


PATCH = Patch(
    name="sequence-parallel-norm",
    targets=(NEW,),
    versions={"megatron-core": ("0.19.2",)},
    reason="WrappedTorchNorm asserts that sequence parallelism is off, and does not mark its weights for the sum of "
    "their gradients over the tensor-parallel ranks",
    upstream="https://github.com/NVIDIA/Megatron-LM/issues/1448",
    condition=condition,
    install=install,
)
