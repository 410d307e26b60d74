"""Without apex's extension, Megatron's output layer cannot add its weight gradient into the gradient buffer, and refuses
that all other layers do, which are Transformer Engine's and need no apex.

The stand-in is cuBLAS's product with an FP32 result, which torch has since 2.8: one kernel reads 16-bit activations and
adds into the buffer. Unfused, the gradient is rounded to 16 bits, written, read again and added."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH", "accumulate"]

AVAILABLE = Target("megatron.core.tensor_parallel.layers:_grad_accum_fusion_available")
LAYER = Target(
    "megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.forward",
    "ctx input weight bias gradient_accumulation_fusion allreduce_dgrad sequence_parallel grad_output_buffer "
    "wgrad_deferral_limit tp_group gtp_remat_size",
)


def condition(machine: Machine) -> Decision:
    """On without apex, whose extension is kept where it is installed."""
    return Decision(not machine.apex, "apex is installed" if machine.apex else "apex is not installed")


def accumulate(rows: Any, gradients: Any, main_grad: Any) -> None:
    """Adds gradientsᵀ · rows to the gradient buffer.

    Args:
        rows: [tokens, inputs], the layer's input.
        gradients: [tokens, outputs] of the same dtype, gradient of its output.
        main_grad: [outputs, inputs], FP32 or the dtype of both.
    """
    import torch

    if main_grad.dtype == rows.dtype:
        main_grad.addmm_(gradients.t(), rows)
    elif main_grad.is_cuda:
        torch.ops.aten.addmm.dtype_out(main_grad, gradients.t(), rows, main_grad.dtype, out=main_grad)
    else:
        main_grad.addmm_(gradients.t().to(main_grad.dtype), rows.to(main_grad.dtype))


def install() -> None:
    """Puts the stand-in where the extension would be."""
    layers, _ = AVAILABLE.owner()
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(
        wgrad_gemm_accum_fp32=accumulate, wgrad_gemm_accum_fp16=accumulate
    )
    AVAILABLE.replace(True)


PATCH = Patch(
    name="accumulated-gradient",
    targets=(AVAILABLE, LAYER),
    versions={"megatron-core": ("0.19.2",)},
    reason="ColumnParallelLinear, which the output layer is, refuses --gradient-accumulation-fusion without apex, and with "
    "it Transformer Engine's layers go unfused too: each weight gradient is written in 16 bits, read and added",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/tensor_parallel/layers.py",
    condition=condition,
    install=install,
)
