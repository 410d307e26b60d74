"""Main weights that Transformer Engine keeps as "what the BF16 weight lacks" are saved as if they were weights.

With 16-bit moments (the precision-aware optimizer) and BF16 weights, the optimizer's `master_param` is 16 bits: the
lower half of an FP32 number whose upper half is the BF16 weight. Megatron writes these integers into the checkpoint as
main weights, and cannot load them again: Transformer Engine refuses the FP32 tensor that comes back.
"""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH", "joined", "split"]

OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
GET_STATES = Target(f"{OPTIMIZER}._get_main_param_and_optimizer_states", "self model_param")
SET_STATES = Target(f"{OPTIMIZER}._set_main_param_and_optimizer_states", "self model_param tensors")


def condition(machine: Machine) -> Decision:
    """On where Transformer Engine's optimizer is used."""
    if machine.gpus and machine.transformer_engine:
        return Decision(True, "Transformer Engine's optimizer may keep 16 bits of a main weight")
    return Decision(False, "only Transformer Engine's optimizer, on a GPU, keeps 16 bits of a main weight")


def joined(weight: Any, remainder: Any) -> Any:
    """FP32 main weights.

    Transformer Engine rounds the upper half of the number by its 16th bit, and takes that back where the lower half, as
    a signed number, is negative (`multi_tensor/adam.cu`, AdamFunctorMasterParamRemainder).

    Args:
        weight: BF16.
        remainder: int16, of the same shape.
    """
    import torch

    upper = weight.view(torch.int16).int() - (remainder < 0).int()
    return ((upper << 16) | (remainder.int() & 0xFFFF)).view(torch.float32)


def split(main: Any) -> tuple[Any, Any]:
    """BF16 weights and int16 remainders of FP32 main weights: what `joined` joins."""
    import torch

    bits = main.view(torch.int32)
    remainder = bits.to(torch.int16)  # keeps the lower half
    upper = (bits >> 16) + (remainder < 0).int()
    return upper.to(torch.int16).view(torch.bfloat16), remainder


def install() -> None:
    """Wraps the two methods through which optimizer states leave and enter a checkpoint."""
    import torch

    get_states, set_states = GET_STATES.get(), SET_STATES.get()

    def kept(self: Any, model_param: Any) -> Any:
        """The BF16 weights of the share, if the optimizer keeps remainders of them; otherwise None."""
        if not self.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            return None
        group, order = self.model_param_group_index_map[model_param]
        share = self.optimizer.param_groups[group]["params"][order]
        state = self.optimizer.state[share].get("master_param")
        held = isinstance(state, torch.Tensor) and state.dtype == torch.int16
        return share if held else None

    def get_with_whole_weights(self: Any, model_param: Any) -> Any:
        states, share = get_states(self, model_param), kept(self, model_param)
        if share is not None:
            states["param"] = joined(share.detach(), states["param"])
        return states

    def set_from_whole_weights(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        share, main = kept(self, model_param), tensors.get("param")
        if share is not None and isinstance(main, torch.Tensor):
            weight, remainder = split(main.to(device=share.device, dtype=torch.float32))
            share.detach().copy_(weight)
            tensors = {**tensors, "param": remainder}
        set_states(self, model_param, tensors)

    GET_STATES.replace(get_with_whole_weights)
    SET_STATES.replace(set_from_whole_weights)


PATCH = Patch(
    name="param-remainders",
    targets=(GET_STATES, SET_STATES),
    versions={"megatron-core": ("0.19.2",)},
    reason="with 16-bit moments and BF16 weights, a checkpoint holds the lower 16 bits of each main weight, as numbers, "
    "in place of the main weights, and a resume fails on them",
    upstream="https://github.com/NVIDIA/Megatron-LM/pull/4222",
    condition=condition,
    install=install,
)
