"""Memory of a rank, by part: what Megatron allocates, counted tensor by tensor, plus what measurements add to
it.

The counts are exact for weights, gradients and optimizer states. Activations are counted as Transformer
Engine keeps them for the backward pass (no dropout, fused attention, SwiGLU); the two constants below are
fitted to the published measurements in `published.yaml` (see docs/plan.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from emma.recipes.devices import device
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.exchange import divides_heads, key_copies
from emma.tools.arithmetic.parameters import rank_parameters
from emma.tools.arithmetic.traffic import checkpoint_traffic

__all__ = [
    "GIB",
    "MARGIN",
    "HostMemory",
    "Memory",
    "estimate_memory",
    "host_memory",
    "memory_limit",
    "recomputed_modules",
    "stage_memory",
]

GIB = 2**30

MARGIN = 0.03
"""Share of the card's memory that a plan leaves free."""

_RUNTIME_GIB = {"gpu": 4.0, "cpu": 1.0}
"""CUDA context, NCCL's buffers, workspaces of cuBLAS, cuDNN and Transformer Engine; on a CPU, Python and its
libraries."""

_PROCESS_GIB = 4.0
"""Host memory of a rank that trains: Python, torch, the CUDA driver, pinned buffers. Assumed, not measured on a GPU."""

_ALLOCATOR = 1.12
"""What the caching allocator holds relative to what is in use: rounding, fragments, short-lived buffers."""

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True)
class Memory:
    """Memory of one rank in GiB, by part."""

    stage: int
    """Pipeline stage of the rank."""
    weights: float
    """Weights in the compute format, with FP8 copies."""
    gradients: float
    """Gradient buffer of all weights of the rank."""
    optimizer: float
    """Main weights and both moments, this rank's share."""
    activations: float
    """What the layers keep for the backward pass, for all micro-batches in flight."""
    logits: float
    """Logits of one micro-batch and their FP32 copy in the loss (last stage)."""
    runtime: float
    """CUDA context, communication buffers, workspaces."""
    allocator: float
    """Rounding and fragments of the caching allocator."""

    @property
    def total(self) -> float:
        """Sum of the parts in GiB."""
        return sum(value for name, value in asdict(self).items() if name != "stage")


@dataclass(frozen=True)
class HostMemory:
    """Memory of one node outside its GPUs in GiB, at its highest."""

    checkpoint: float
    """Shares of a checkpoint that is saved or loaded, of all ranks."""
    processes: float
    """The ranks themselves."""
    when: str
    """What needs the most: `save` or `load`."""

    @property
    def total(self) -> float:
        """Sum of both in GiB."""
        return self.checkpoint + self.processes


def host_memory(recipe: Recipe) -> HostMemory:
    """Memory of a node while its ranks save or load, whichever is more (`tools/arithmetic/traffic.py`).

    On a CPU, the ranks' own memory is `estimate_memory`'s.
    """
    traffic = checkpoint_traffic(recipe, 1.0)
    save, load = traffic.node_save_gib, traffic.node_load_gib
    each = estimate_memory(recipe).total if recipe.cluster.device == "cpu" else _PROCESS_GIB
    each += recipe.parallelism.offload_layers * _layer_bytes(recipe)[1] / GIB
    return HostMemory(
        max(save, load), each * recipe.cluster.gpus_per_node, "save" if save >= load else "load"
    )


def memory_limit(recipe: Recipe) -> float | None:
    """GiB that a rank may use: the card's less the margin; None on a CPU whose memory is not given."""
    whole = recipe.cluster.memory_gib or device(recipe.cluster.device).memory_gib
    return None if whole is None else whole * (1 - MARGIN)


def estimate_memory(recipe: Recipe) -> Memory:
    """Memory of the rank that needs the most, over all pipeline stages."""
    stages = (stage_memory(recipe, stage) for stage in range(recipe.parallelism.pipeline))
    return max(stages, key=lambda memory: memory.total)


def stage_memory(recipe: Recipe, stage: int) -> Memory:
    """Memory of a rank of one pipeline stage."""
    activations = _activations(recipe, stage)
    last = stage == recipe.parallelism.pipeline - 1
    logits = _logits(recipe) if last else 0.0
    return Memory(
        stage=stage,
        weights=_weights(recipe, stage) / GIB,
        gradients=_gradients(recipe, stage) / GIB,
        optimizer=_optimizer(recipe, stage) / GIB,
        activations=activations / GIB,
        logits=logits / GIB,
        runtime=_RUNTIME_GIB["cpu" if recipe.cluster.device == "cpu" else "gpu"],
        allocator=(_ALLOCATOR - 1) * (activations + logits) / GIB,
    )


def _held(recipe: Recipe, stage: int) -> tuple[int, int]:
    """Weights of the rank: those multiplied in FP8, and all others."""
    p, precision = recipe.parallelism, recipe.precision
    held = rank_parameters(recipe.model, p.tensor, p.pipeline, stage)
    if precision.fp8 is None:
        return 0, held.total
    per_stage = recipe.model.layers // p.pipeline
    kept = precision.first_last_layers_bf16 * ((stage == 0) + (stage == p.pipeline - 1))
    fp8 = held.layers * max(0, per_stage - kept) // per_stage
    return fp8, held.total - fp8


def _weights(recipe: Recipe, stage: int) -> int:
    fp8, other = _held(recipe, stage)
    # A product in FP8 needs the weight and its transpose, 1 byte each; without fp8_params the BF16 weight
    # stays too.
    fp8_bytes = 2 if recipe.precision.fp8_params else 4
    return fp8 * fp8_bytes + other * _BYTES[recipe.precision.compute]


def _gradients(recipe: Recipe, stage: int) -> int:
    precision = recipe.precision
    size = 4 if precision.compute == "fp32" or precision.grad_reduce_fp32 else 2
    return sum(_held(recipe, stage)) * size


def _optimizer(recipe: Recipe, stage: int) -> float:
    optimizer, p = recipe.optimizer, recipe.parallelism
    moments = _BYTES[optimizer.exp_avg_dtype] + _BYTES[optimizer.exp_avg_sq_dtype]
    states = (optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype, optimizer.main_params_dtype)
    if recipe.precision.compute == "fp32":
        main = 0  # the weights themselves
    elif any(state != "fp32" for state in states) and not recipe.precision.fp8_params:
        main = 2  # FP16, or the 16 bits of the FP32 weight that the BF16 weight lacks
    else:
        main = _BYTES[optimizer.main_params_dtype]
    shards = (
        recipe.data_parallel * p.context // p.distributed_optimizer_instances
        if p.distributed_optimizer
        else 1
    )
    return sum(_held(recipe, stage)) * (main + moments) / shards


def _tokens(recipe: Recipe) -> int:
    """Tokens of a micro-batch on one context-parallel rank."""
    return recipe.batch.micro * recipe.batch.sequence_length // recipe.parallelism.context


def _layer_bytes(recipe: Recipe) -> tuple[float, float]:
    """Bytes that one layer keeps of one micro-batch on one rank: for its input alone, and in all."""
    model, p = recipe.model, recipe.parallelism
    fp8 = recipe.precision.fp8 is not None
    unit = _BYTES[recipe.precision.compute]
    product = 1 if fp8 else unit  # inputs of matrix products are kept in the format of the product
    h, f = model.hidden_size, model.ffn_hidden_size
    queries, keys = model.attention_heads * model.channels, model.query_groups * model.channels
    # Input and middle of the residual stream, and the inputs of QKV and of gate and up: outputs of the norms before
    # them.
    cut = p.tensor if p.sequence else 1
    network = model.network
    sequence_wise = (2 * h * unit + 2 * h * product) / cut
    if network.norms == "both":
        sequence_wise += 2 * h * unit / cut  # inputs of the norms after attention and feed-forward
    # Q, K, V; the attention's output, and its FP8 copy as input of the projection; gate and up; input of
    # down.
    width_wise = (queries + 2 * keys) * unit + queries * unit + (queries if fp8 else 0)
    mlp = (1 + network.gated) * f * unit + f * product
    if network.qk_norm != "none":
        width_wise += (queries + keys) * unit  # inputs of both norms
    if network.activation == "gelu_tanh":
        # Unfused: the activation's output, and the other half with its offset. Not measured.
        mlp += 2 * f * unit
    modules = recomputed_modules(recipe)
    if divides_heads(recipe) and "core_attn" not in modules:
        # Attention keeps its output for my heads, the projection the one for my tokens; and keys and values go to several
        # ranks where there are fewer groups than ranks.
        width_wise += (0 if fp8 else queries * unit) + 2 * keys * unit * (key_copies(recipe) - 1)
    if "mlp" in modules:
        # Only the input of the norm before it stays, which the residual stream keeps.
        sequence_wise -= h * product / cut
    else:
        width_wise += mlp
    tokens = _tokens(recipe)
    whole = tokens * (sequence_wise + width_wise / p.tensor)
    if recipe.cluster.device == "cpu" and "core_attn" not in modules:
        # The unfused attention keeps scores and probabilities.
        whole += (
            2 * unit * recipe.batch.micro * model.attention_heads / p.tensor * recipe.batch.sequence_length**2
        )
    return tokens * h * unit / cut, whole


def recomputed_modules(recipe: Recipe) -> frozenset[str]:
    """Parts of every layer that `recompute: selective` computes twice, by their names in Megatron."""
    p = recipe.parallelism
    return frozenset(p.recompute_modules or ("core_attn",)) if p.recompute == "selective" else frozenset()


def _activations(recipe: Recipe, stage: int) -> float:
    p = recipe.parallelism
    layers = recipe.model.layers // (p.pipeline * p.virtual_pipeline)
    recomputed = (p.recompute_layers or layers) if p.recompute == "full" else 0
    input_bytes, whole = _layer_bytes(recipe)
    # Of offloaded layers, one is on its way to the host and one comes back.
    kept = layers - recomputed - max(0, p.offload_layers - 2)
    chunk = recomputed * input_bytes + kept * whole
    # While a layer is recomputed, its own activations come back; the kept layers of its micro-batch are gone
    # by then.
    working = whole if recomputed == layers else 0.0
    return _chunks_in_flight(recipe, stage) * chunk + working


def _chunks_in_flight(recipe: Recipe, stage: int) -> int:
    """Forward passes of model chunks that await their backward pass at the peak (1F1B, interleaved)."""
    p = recipe.parallelism
    microbatches = recipe.batch.global_ // (recipe.batch.micro * recipe.data_parallel)
    if p.virtual_pipeline == 1:
        return min(p.pipeline - stage, microbatches)
    warm_up = 2 * (p.pipeline - stage - 1) + (p.virtual_pipeline - 1) * p.pipeline
    return min(warm_up + 1, microbatches * p.virtual_pipeline)


def _logits(recipe: Recipe) -> float:
    """Logits in the compute format and in FP32 (the loss works on that copy in place), and the last norm."""
    p = recipe.parallelism
    unit = _BYTES[recipe.precision.compute]
    width = recipe.model.padded_vocab_size(p.tensor) / p.tensor
    norm = 2 * unit * recipe.model.hidden_size / (p.tensor if p.sequence else 1)
    return _tokens(recipe) * ((unit + 4) * width + norm)
