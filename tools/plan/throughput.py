"""Expected speed, from published measurements of the same model and software.

A run's speed is the best published share of the device's peak, reduced by a factor for each cost: tensor
parallelism, small micro-batches, pipeline bubbles, scale, recomputation. The factors are ratios of published
figures (`published.yaml`); where there are none, `Throughput.assumptions` says what was assumed instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from emma.recipes.devices import device, matmul_format
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.flops import attention_flops_per_token, flops_per_token
from emma.tools.arithmetic.parameters import layer_parameters, matmul_parameters

__all__ = ["UNCERTAINTY", "Throughput", "expected_throughput"]

UNCERTAINTY = 0.15
"""Relative spread to expect between the estimate and a tuned run on another cluster."""

# Model FLOP/s (causal) as a share of peak with TP1 CP2 on 8 H100s, the fastest published: dgxc-benchmarking v25.04.02,
# with gradients summed in BF16 and unmasked mock data.
_SHARE_OF_PEAK = {"bf16": 0.556, "fp8": 0.3656}

# The same shape in a production run: Swallow against dgxc-benchmarking, 8,563 against 10,682 tokens/s. It sums gradients
# in FP32, reads real data and is tuned less; how much each of these costs is not published.
_PRODUCTION = 8563 / 10682

# Tensor parallelism against none: 2 and 4 from Swallow; 8 continues the trend.
_TENSOR = {1: 1.0, 2: 0.966, 4: 0.92, 8: 0.85}

# With fewer tokens per rank and micro-batch, matrix products are too small to fill the device (Swallow: TP2,
# one sequence against two).
_FULL_MICROBATCH = 8192
_SMALL_MICROBATCH = 0.925

# Sends between pipeline stages, beyond the bubble (Swallow: PP2 against PP1).
_PIPELINE = 0.945

# Each doubling of context parallelism beyond 2.
_CONTEXT_DOUBLING = 0.96

# Each doubling of the number of GPUs beyond 8 (Swallow: −2.1 % at 64, −3.9 % at 128; swiss-ai: −3 % at 256).
_LOSS_A_DOUBLING = 0.01

# Blockwise scaling runs more small kernels than current scaling; nobody has published the cost for 8B.
_BLOCKWISE = 0.85


@dataclass(frozen=True)
class Throughput:
    """Expected speed of a run."""

    tokens_per_second_per_gpu: float
    """Tokens per second and GPU."""
    tflops_causal: float
    """Model TFLOP/s per GPU, attention counted causally, recomputation not counted."""
    tflops_full: float
    """Model TFLOP/s per GPU, attention counted in full."""
    mfu: float | None
    """`tflops_causal` as a share of the device's dense peak in the run's format."""
    bubble: float
    """Share of a step that pipeline stages spend waiting."""
    assumptions: tuple[str, ...]
    """What no published figure supports."""


def expected_throughput(recipe: Recipe, measured: float | None = None) -> Throughput | None:
    """The speed to expect, or the figures that follow from a measured one.

    Args:
        recipe: a checked recipe.
        measured: tokens per second and GPU, instead of the estimate.

    Returns:
        None where no figure is known: FP32, a CPU.
    """
    causal = flops_per_token(recipe.model, recipe.batch.sequence_length, "causal")
    full = flops_per_token(recipe.model, recipe.batch.sequence_length, "full")
    peak = device(recipe.cluster.device).peak_tflops(recipe.precision)
    bubble = _bubble(recipe)
    assumptions: tuple[str, ...] = ()
    if measured is None:
        share = _SHARE_OF_PEAK.get(matmul_format(recipe.precision))
        if share is None or peak is None:
            return None
        factor, assumptions = _factor(recipe)
        measured = share * peak * 1e12 / causal * factor * (1 - bubble)
    tflops = measured * causal / 1e12
    return Throughput(
        tokens_per_second_per_gpu=measured,
        tflops_causal=tflops,
        tflops_full=measured * full / 1e12,
        mfu=tflops / peak if peak else None,
        bubble=bubble,
        assumptions=assumptions,
    )


def _bubble(recipe: Recipe) -> float:
    """Share of a step in which a stage is idle: (p − 1) / v of m + (p − 1) / v micro-batch times."""
    p = recipe.parallelism
    microbatches = recipe.batch.global_ // (recipe.batch.micro * recipe.data_parallel)
    idle = (p.pipeline - 1) / p.virtual_pipeline
    return idle / (microbatches + idle)


def _factor(recipe: Recipe) -> tuple[float, tuple[str, ...]]:
    p, cluster = recipe.parallelism, recipe.cluster
    assumptions = []
    production = recipe.precision.grad_reduce_fp32 or recipe.batch.document_masking
    factor = _PRODUCTION if production else 1.0
    if production and recipe.precision.fp8 is not None:
        assumptions.append(
            f"FP32 gradients, masked documents and real data cost FP8 what they cost BF16, {1 - _PRODUCTION:.0%}"
        )
    factor *= _TENSOR.get(p.tensor, _TENSOR[8] ** math.log(p.tensor, 8))
    if p.tensor > 4:
        assumptions.append(f"tensor parallelism {p.tensor} costs {1 - factor:.0%}")
    rows = recipe.batch.micro * recipe.batch.sequence_length // (p.context * p.tensor)
    if p.tensor > 1 and rows < _FULL_MICROBATCH:
        factor *= _SMALL_MICROBATCH
    if p.pipeline > 1:
        factor *= _PIPELINE
    if p.context > 2:
        factor *= _CONTEXT_DOUBLING ** math.log2(p.context / 2)
        assumptions.append(
            f"context parallelism {p.context} costs {1 - _CONTEXT_DOUBLING:.0%} per doubling beyond 2"
        )
    if cluster.world_size > 8:
        factor *= 1 - _LOSS_A_DOUBLING * math.log2(cluster.world_size / 8)
    if cluster.device not in ("h100", "h200", "gh200"):
        assumptions.append(f"`{cluster.device}` reaches the same share of its peak as an H100")
    if device(cluster.device).platform == "rocm":
        assumptions.append(
            "ROCm's libraries and RCCL do as well as CUDA's and NCCL; training there is refused until it has been proven"
        )
    if recipe.precision.fp8 == "blockwise":
        factor *= _BLOCKWISE
        assumptions.append(f"blockwise scaling runs at {_BLOCKWISE:.0%} of current scaling")
    if recipe.precision.fp8 is not None and p.tensor > 1:
        assumptions.append("tensor parallelism costs FP8 the same share as BF16")
    return factor / (1 + _recomputed_share(recipe)), tuple(assumptions)


def _recomputed_share(recipe: Recipe) -> float:
    """FLOPs of recomputation relative to model FLOPs: the forward third of what is recomputed."""
    p, model = recipe.parallelism, recipe.model
    if p.recompute == "none":
        return 0.0
    length = recipe.batch.sequence_length
    attention = attention_flops_per_token(model, length)
    if p.recompute == "selective":
        return attention / 3 / flops_per_token(model, length)
    layers = model.layers // (p.pipeline * p.virtual_pipeline)
    share = (p.recompute_layers or layers) / layers
    linear = 6 * model.layers * layer_parameters(model).matmul
    return share * (linear + attention) / 3 / (6 * matmul_parameters(model) + attention)
