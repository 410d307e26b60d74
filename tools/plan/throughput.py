"""Expected speed, from published measurements of the same model and software.

A run's speed is the best published share of the device's peak, reduced by a factor for each cost: tensor
parallelism, small micro-batches, pipeline bubbles, scale, recomputation. The factors are ratios of published
figures (`published.yaml`); where there are none, `Throughput.assumptions` says what was assumed instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from emma.recipes.devices import device, matmul_format
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.exchange import divides_heads, exchanged_bytes
from emma.tools.arithmetic.flops import attention_flops_per_token, flops_per_token
from emma.tools.arithmetic.parameters import layer_parameters, matmul_parameters
from emma.tools.plan.memory import recomputed_modules

__all__ = ["UNCERTAINTY", "Cost", "Throughput", "expected_throughput"]

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

# Each doubling of context parallelism beyond 2, unmasked.
_CONTEXT_DOUBLING = 0.96

# Heads exchanged by context-parallel ranks with masked documents, GB/s that a rank sends, beside no computation. Two thirds
# of an H100's NVLink (450, NVIDIA H100 data sheet), and of 400 Gbit/s per GPU between nodes; not measured.
_EXCHANGE_ON_NODE, _EXCHANGE_BETWEEN_NODES = 300, 33

# Each doubling of the number of GPUs beyond 8 (Swallow: −2.1 % at 64, −3.9 % at 128; swiss-ai: −3 % at 256).
_LOSS_A_DOUBLING = 0.01

# Blockwise scaling runs more small kernels than current scaling; nobody has published the cost for 8B.
_BLOCKWISE = 0.85


_UNKNOWN = {
    "offload_layers": "activations in host memory",
    "overlap_tensor": "overlapped tensor-parallel communication",
    "cuda_graphs": "CUDA graphs",
}


@dataclass(frozen=True)
class Cost:
    """What a choice of the recipe takes from the speed of the fastest published layout."""

    what: str
    """The choice."""
    factor: float
    """Speed with it, relative to the speed without it."""
    source: str
    """Where the factor was read, or what was assumed for want of a published figure."""
    assumed: bool = False


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
    costs: tuple[Cost, ...]
    """What the recipe pays for its choices, in the order of the estimate; none for a measured speed."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What no published figure supports."""
        return tuple(cost.source for cost in self.costs if cost.assumed)


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
    costs: tuple[Cost, ...] = ()
    if measured is None:
        share = _SHARE_OF_PEAK.get(matmul_format(recipe.precision))
        if share is None or peak is None:
            return None
        fastest = share * peak * 1e12 / causal
        costs = tuple(_costs(recipe, fastest))
        factor = math.prod(cost.factor for cost in costs)
        measured = fastest * factor * (1 - bubble)
    tflops = measured * causal / 1e12
    return Throughput(
        tokens_per_second_per_gpu=measured,
        tflops_causal=tflops,
        tflops_full=measured * full / 1e12,
        mfu=tflops / peak if peak else None,
        bubble=bubble,
        costs=costs,
    )


def _bubble(recipe: Recipe) -> float:
    """Share of a step in which a stage is idle: (p − 1) / v of m + (p − 1) / v micro-batch times."""
    p = recipe.parallelism
    microbatches = recipe.batch.global_ // (recipe.batch.micro * recipe.data_parallel)
    idle = (p.pipeline - 1) / p.virtual_pipeline
    return idle / (microbatches + idle)


def _costs(recipe: Recipe, fastest: float) -> Iterator[Cost]:
    """What the choices take from the fastest layout's tokens per second and GPU."""
    p, cluster, precision = recipe.parallelism, recipe.cluster, recipe.precision
    fp8 = precision.fp8 is not None
    if precision.grad_reduce_fp32 or recipe.batch.document_masking:
        what = "a production run: FP32 gradient sums, masked documents, real data"
        yield Cost(what, _PRODUCTION, "Swallow against dgxc-benchmarking; not published apart")
        if fp8:
            yield _assumption(
                f"FP32 gradients, masked documents and real data cost FP8 what they cost BF16, {1 - _PRODUCTION:.0%}"
            )
    if p.tensor > 1:
        factor = _TENSOR.get(p.tensor, _TENSOR[8] ** math.log(p.tensor, 8))
        assumed = f"tensor parallelism {p.tensor} costs {1 - factor:.0%}"
        what = f"tensor parallelism {p.tensor}"
        yield Cost(what, factor, assumed if p.tensor > 4 else "Swallow", assumed=p.tensor > 4)
        if fp8:
            yield _assumption("tensor parallelism costs FP8 the same share as BF16")
    rows = recipe.batch.micro * recipe.batch.sequence_length // (p.context * p.tensor)
    if p.tensor > 1 and rows < _FULL_MICROBATCH:
        yield Cost(f"micro-batches of {rows:,} tokens a rank", _SMALL_MICROBATCH, "Swallow")
    if p.pipeline > 1:
        yield Cost(f"sends between {p.pipeline} pipeline stages", _PIPELINE, "Swallow")
    if divides_heads(recipe):
        on_node = p.tensor * p.context <= cluster.gpus_per_node
        rate = _EXCHANGE_ON_NODE if on_node else _EXCHANGE_BETWEEN_NODES
        # A token's ranks together: their tokens a second are `fastest` each, and each sends its part.
        seconds = fastest * (2 + (p.recompute == "full")) * exchanged_bytes(recipe) / (rate * 1e9)
        where = "on a node" if on_node else "between nodes"
        text = f"context-parallel ranks exchange heads at {rate} GB/s {where}, while they compute nothing; not measured"
        yield Cost(
            f"context parallelism {p.context} with masked documents", 1 / (1 + seconds), text, assumed=True
        )
    elif p.context > 2:
        factor = _CONTEXT_DOUBLING ** math.log2(p.context / 2)
        text = f"context parallelism {p.context} costs {1 - _CONTEXT_DOUBLING:.0%} per doubling beyond 2"
        yield Cost(f"context parallelism {p.context}", factor, text, assumed=True)
    if cluster.world_size > 8:
        factor = 1 - _LOSS_A_DOUBLING * math.log2(cluster.world_size / 8)
        yield Cost(f"{cluster.world_size} GPUs", factor, "Swallow, swiss-ai")
    if cluster.device not in ("h100", "h200", "gh200"):
        yield _assumption(f"`{cluster.device}` reaches the same share of its peak as an H100")
    if device(cluster.device).platform == "rocm":
        yield _assumption(
            "ROCm's libraries and RCCL do as well as CUDA's and NCCL; training there is refused until it has been proven"
        )
    if precision.fp8 == "blockwise":
        text = f"blockwise scaling runs at {_BLOCKWISE:.0%} of current scaling"
        yield Cost("blockwise FP8", _BLOCKWISE, text, assumed=True)
    for key, what in _UNKNOWN.items():
        if getattr(p, key):
            yield _assumption(
                f"{what}: no figure is published for 8B models, so neither gain nor cost is counted"
            )
    if recomputed := _recomputed_share(recipe):
        yield Cost(f"recomputation ({p.recompute})", 1 / (1 + recomputed), "FLOPs that are computed twice")


def _assumption(text: str) -> Cost:
    """An assumption that changes no figure."""
    return Cost("", 1.0, text, assumed=True)


def _recomputed_share(recipe: Recipe) -> float:
    """FLOPs of recomputation relative to model FLOPs: the forward third of what is recomputed."""
    p, model = recipe.parallelism, recipe.model
    if p.recompute == "none":
        return 0.0
    length = recipe.batch.sequence_length
    attention = attention_flops_per_token(model, length)
    if p.recompute == "selective":
        modules = recomputed_modules(recipe)
        parts = attention * ("core_attn" in modules) + 6 * model.layers * layer_parameters(model).mlp * (
            "mlp" in modules
        )
        return parts / 3 / flops_per_token(model, length)
    layers = model.layers // (p.pipeline * p.virtual_pipeline)
    share = (p.recompute_layers or layers) / layers
    linear = 6 * model.layers * layer_parameters(model).matmul
    return share * (linear + attention) / 3 / (6 * matmul_parameters(model) + attention)
