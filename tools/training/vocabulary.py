"""Vocabulary padding: rows of the output layer that belong to no token.

Megatron pads the vocabulary to a multiple that depends on the tensor-parallel size and includes the padding in the
softmax. The loss would depend on the layout, and differ from that of the released model, which has no padding. Here the
padding's logits are set to the lowest value of their type: it has no probability and gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import mpu

__all__ = ["mask_padding"]


def mask_padding(model: list[torch.nn.Module], vocab_size: int) -> list[torch.nn.Module]:
    """Registers the mask on the output layer of each chunk that has one; does nothing without padding.

    Args:
        model: this rank's model chunks, not yet wrapped for data parallelism.
        vocab_size: number of token ids.
    """
    for chunk in model:
        layer = getattr(chunk, "output_layer", None)
        if layer is None:
            continue
        rows = layer.output_size_per_partition
        first = mpu.get_tensor_model_parallel_rank() * rows
        real = min(max(vocab_size - first, 0), rows)
        if real < rows:
            layer.register_forward_hook(_Mask(real))
    return model


class _Mask:
    """Forward hook of a column-parallel output layer."""

    def __init__(self, real: int) -> None:
        self.real = real

    def __call__(
        self, layer: torch.nn.Module, inputs: Any, output: tuple[torch.Tensor, Any]
    ) -> tuple[torch.Tensor, Any]:
        logits, bias = output
        padding = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        padding[self.real :] = True
        return logits.masked_fill(padding, torch.finfo(logits.dtype).min), bias
