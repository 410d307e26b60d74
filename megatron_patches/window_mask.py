"""A window and a mask of documents at once, in the local implementation."""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH"]

SOFTMAX = Target(
    "megatron.core.fusions.fused_softmax:FusedScaleMaskSoftmax.forward_torch_softmax",
    "self input mask softmax_offset",
)
WINDOW = Target("megatron.core.fusions.fused_softmax:get_sliding_window_causal_mask", "sq skv window_size")


def condition(machine: Machine) -> Decision:
    """Always on: it is not known yet whether a model will have windows."""
    return Decision(True, "takes effect in layers with a window that are given a mask")


def install() -> None:
    """Joins the window's mask with the one that the layer was given, instead of replacing it."""
    plain, window_mask = SOFTMAX.get(), WINDOW.get()

    def forward(self: Any, input: Any, mask: Any, softmax_offset: Any = None) -> Any:
        window = self.window_size
        if window is None or mask is None:
            return plain(self, input, mask, softmax_offset)
        joined = mask | window_mask(input.size(2), input.size(3), window).to(mask.device)
        self.window_size = None
        try:
            return plain(self, input, joined, softmax_offset)
        finally:
            self.window_size = window

    SOFTMAX.replace(forward)


PATCH = Patch(
    name="window-mask",
    targets=(SOFTMAX, WINDOW),
    versions={"megatron-core": ("0.19.2",)},
    reason="FusedScaleMaskSoftmax replaces the mask that it is given by the window's, so that documents of a sequence see "
    "each other in layers with a window",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/fusions/fused_softmax.py",
    condition=condition,
    install=install,
)
