"""The distributed optimizer over torch's AdamW can be neither saved before its first step nor resumed.

`DistributedOptimizer` has a separate path for torch's AdamW, which keeps `step` in each parameter's state, while the fused
Adams of Transformer Engine and apex keep one per group. That path has three faults, the last of them silent.
"""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH"]

OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
STATE_DICT = Target(f"{OPTIMIZER}.state_dict", "self")
SET_STATES = Target(f"{OPTIMIZER}._set_main_param_and_optimizer_states", "self model_param tensors")
LOAD = Target(f"{OPTIMIZER}.load_state_dict", "self state_dict")


def condition(machine: Machine) -> Decision:
    """On where Megatron falls back to torch's AdamW."""
    fused = [
        name
        for name, there in (("Transformer Engine", machine.transformer_engine), ("apex", machine.apex))
        if there
    ]
    if fused and machine.gpus:
        return Decision(False, f"{fused[0]} brings its own Adam")
    if fused:
        return Decision(True, f"{fused[0]} is of no use without a GPU, so Megatron uses torch's AdamW")
    return Decision(True, "neither Transformer Engine nor apex is installed, so Megatron uses torch's AdamW")


def initialise_state(optimizer: Any) -> None:
    """Gives every parameter the state that torch's AdamW creates in its first step: zero moments (fp32), step 0."""
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0, dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def install() -> None:
    """Wraps the three methods; they are unchanged where the inner optimizer is not torch's AdamW."""
    import torch

    state_dict, set_states, load = STATE_DICT.get(), SET_STATES.get(), LOAD.get()

    def runs_torch_adamw(optimizer: Any) -> bool:
        return isinstance(getattr(optimizer, "optimizer", None), torch.optim.AdamW)

    def state_dict_with_state(self: Any) -> Any:
        # Megatron takes the step from the first parameter's state, which a fresh optimizer does not have.
        if runs_torch_adamw(self):
            initialise_state(self.optimizer)
        return state_dict(self)

    def set_states_without_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        # The checkpoint keeps the step in the parameter groups; values that are not tensors are passed over.
        set_states(self, model_param, {"step": None, **tensors} if runs_torch_adamw(self) else tensors)

    def load_with_own_steps(self: Any, loaded: dict[str, Any]) -> Any:
        result = load(self, loaded)
        if runs_torch_adamw(self):
            # Megatron gives all parameters one step tensor, which AdamW then advances once per parameter.
            for state in self.optimizer.state.values():
                state["step"] = state["step"].clone()
        return result

    STATE_DICT.replace(state_dict_with_state)
    SET_STATES.replace(set_states_without_step)
    LOAD.replace(load_with_own_steps)


PATCH = Patch(
    name="torch-adam-resume",
    targets=(STATE_DICT, SET_STATES, LOAD),
    versions={"megatron-core": ("0.19.2",), "torch": ("2.11.0", "2.12.1", "2.13.0")},
    reason="resuming with torch's AdamW fails on the empty state, then on a missing step, and then advances the step "
    "once per parameter instead of once per optimizer step, so that the loss silently leaves its course",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/optimizer/distrib_optimizer.py",
    condition=condition,
    install=install,
)
