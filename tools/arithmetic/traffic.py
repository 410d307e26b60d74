"""What checkpoints ask of a rank and its node: bytes read and written, and host memory meanwhile.

The counts are those of Megatron 0.19.2 with this project's patches (`optimizer_rows`, `even_blocks`, `exact_reads`)
and parallel loading: of a model-parallel shard, each data-parallel rank saves and reads its own share.
`benchmarks/checkpoints.py` measures them (docs/benchmarks/checkpoints.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from emma.recipes.schema import Recipe
from emma.tools.arithmetic.parameters import rank_parameters, total_parameters

__all__ = ["Traffic", "checkpoint_traffic", "copied_bytes", "planning_seconds", "state_bytes", "weight_bytes"]

_GIB = 2**30

BLOCK_BYTES = 16 * 2**20
"""Largest block of weights (`megatron_patches/even_blocks.py`)."""

_CONTENTS_BYTES = 330
"""Of a block in `.metadata`, its table of contents, which every rank reads: measured, 308 to 329."""

_HEADER_BYTES = 9_800
"""Of the archive that holds a block, read to find its data: measured."""

_DEAL_SECONDS, _READ_SECONDS = 12e-6, 6e-6
"""Processor time for a block that is dealt, and for one whose description is read: measured with Megatron's own
functions on 192,000 blocks."""

_WRITER_GIB = 0.66
"""Processes beside a rank that saves in the background: the writer and the server of its queue. Measured on a CPU: 404
and 276 MiB of private memory; on a GPU, CUDA's own comes on top."""


def weight_bytes(recipe: Recipe) -> int:
    """Bytes of a weight in a checkpoint: FP32 runs 4, all others 2 (FP8 weights are written as BF16)."""
    return 4 if recipe.precision.compute == "fp32" else 2


def state_bytes(recipe: Recipe) -> int:
    """Bytes of a weight's optimizer state in a checkpoint, always FP32: main weight and two moments. An FP32 run
    without the distributed optimizer has no main weights besides the weights."""
    whole = recipe.precision.compute == "fp32" and not recipe.parallelism.distributed_optimizer
    return 8 if whole else 12


@dataclass(frozen=True)
class Traffic:
    """Of the rank that moves the most (all data-parallel ranks of a stage move the same)."""

    written_gib: float
    """Written by the rank at a save."""
    read_gib: float
    """Read by the rank at a resume."""
    verified_gib: float
    """Read before that, once by all ranks together, where files are compared with their hashes."""
    contents_gib: float
    """Part of `read_gib` that does not fall with the number of ranks: the table of contents."""
    host_save_gib: float
    """Host memory of the rank at a save, beyond what it has otherwise."""
    host_load_gib: float
    """The same at a resume."""
    node_save_gib: float
    """All ranks of a node at a save."""
    node_load_gib: float
    """All ranks of a node at a resume."""
    seconds_to_load: float
    """Reading at the storage's speed, verification included."""


def _blocks(recipe: Recipe, held: int) -> tuple[int, int]:
    """Blocks of a model-parallel shard of `held` weights: of weights, and of optimizer states.

    Weights: one for each tensor and one for each 16 MiB. States, three of each weight: one for each tensor, and one
    more wherever a rank's shard of a gradient bucket begins. Buckets have 40 million weights, or a million for each
    data-parallel rank if that is more, with overlapped gradient reduction; else there is one
    (`distributed_data_parallel.py` of Megatron).
    """
    p = recipe.parallelism
    ranks = recipe.data_parallel * p.context
    # Of a layer in a checkpoint: gate and up are saved apart, query, key and value together.
    model = recipe.model
    each = len(model.layer_tensors) + model.network.gated
    tensors = each * model.layers // p.pipeline + len(model.design.outside)
    buckets = max(1, held // max(40_000_000, 1_000_000 * ranks)) if p.overlap_grad_reduce else 1
    weights = tensors + held * weight_bytes(recipe) // BLOCK_BYTES
    shards = ranks // p.distributed_optimizer_instances if p.distributed_optimizer else 1
    return weights, 3 * (tensors + (shards * buckets if shards > 1 else 0))


@dataclass(frozen=True)
class Shares:
    """Bytes of one data-parallel rank of a pipeline stage."""

    weights: float
    """Weights that it saves, and reads to resume."""
    states: float
    """Optimizer states that it saves, and reads to resume."""
    rows: float
    """Optimizer states that it holds in host memory meanwhile: all of its own shard, of which each instance of the
    distributed optimizer has a copy and one saves a part."""


def stage_shares(recipe: Recipe, stage: int, ranks: int | None = None) -> Shares:
    """Shares of a data-parallel rank of a pipeline stage.

    Args:
        recipe: a checked recipe.
        stage: the pipeline stage.
        ranks: data-parallel ranks; by default the recipe's, times its context-parallel ones.
    """
    p = recipe.parallelism
    held = rank_parameters(recipe.model, p.tensor, p.pipeline, stage).total
    ranks = ranks or recipe.data_parallel * p.context
    instances = p.distributed_optimizer_instances if p.distributed_optimizer else 1
    states = held * state_bytes(recipe) / ranks
    return Shares(held * weight_bytes(recipe) / ranks, states, states * instances)


def _fullest(recipe: Recipe) -> tuple[int, Shares]:
    """Weights of the largest model-parallel shard, and the shares of its ranks."""
    p = recipe.parallelism
    sizes = [rank_parameters(recipe.model, p.tensor, p.pipeline, stage).total for stage in range(p.pipeline)]
    stage = sizes.index(max(sizes))
    return sizes[stage], stage_shares(recipe, stage)


def copied_bytes(recipe: Recipe) -> float:
    """Bytes that a rank copies before training goes on while it saves in the background.

    Its rows of the optimizer from the device, the same to memory shared with the writer, and its share of the
    weights from the device (`PersistentAsyncCaller.schedule_async_call`, `FileSystemWriterAsync.preload_tensors`).
    """
    _, shares = _fullest(recipe)
    return shares.weights + 2 * shares.rows


def planning_seconds(recipe: Recipe) -> float:
    """Time in which ranks agree on who saves what; training waits, in the background or not.

    Every rank reads the list of blocks of every other rank of its data-parallel group and deals them
    (`determine_main_replica_uniform_distribution`), then reads the lists of all ranks once more
    (`determine_global_metadata`): processor time per block, without the network.
    """
    p = recipe.parallelism
    ranks = recipe.data_parallel * p.context
    shards = ranks // p.distributed_optimizer_instances if p.distributed_optimizer else 1
    weights, states = _blocks(recipe, _fullest(recipe)[0])
    listed = weights + states / shards
    if ranks == 1:
        return 0.0
    return listed * (ranks * _DEAL_SECONDS + recipe.cluster.world_size * _READ_SECONDS)


def checkpoint_traffic(recipe: Recipe, storage_gb_per_s: float) -> Traffic:
    """Bytes and host memory of a save and of a resume.

    Host memory at a save: the rank's rows of the optimizer (12 bytes a weight over the ranks of an optimizer
    instance) and its share of the weights, copied from the device. Saving in the background holds the same in
    memory shared with the writer, a process of its own. At a resume: the rows until they are in the optimizer;
    weights go to the device. On a CPU the "device" is host memory too: weights that other ranks have read are copied,
    and gate and up of each layer are joined.

    Args:
        recipe: a checked recipe.
        storage_gb_per_s: speed of the storage for all ranks together, 10^9 bytes/s.
    """
    p, model, cluster = recipe.parallelism, recipe.model, recipe.cluster
    (held, shares), ranks = _fullest(recipe), recipe.data_parallel * p.context
    moved = shares.weights + shares.states
    weight_blocks, state_blocks = _blocks(recipe, held)
    blocks = (weight_blocks + state_blocks) / ranks
    contents = _CONTENTS_BYTES * p.tensor * p.pipeline * (weight_blocks + state_blocks)
    save, load = shares.weights + shares.rows, shares.rows if p.distributed_optimizer else 0.0
    if cluster.device == "cpu":
        gate_and_up = (
            2
            * model.network.gated
            * model.hidden_size
            * model.ffn_hidden_size
            * model.layers
            // (p.tensor * p.pipeline)
        )
        load += weight_bytes(recipe) * (held * (1 - 1 / ranks) + gate_and_up)
    writer = _WRITER_GIB * _GIB if recipe.checkpoint.asynchronous else 0.0
    total = total_parameters(model) * (weight_bytes(recipe) + state_bytes(recipe))
    return Traffic(
        written_gib=moved / _GIB,
        read_gib=(moved + blocks * _HEADER_BYTES + contents) / _GIB,
        verified_gib=total / cluster.world_size / _GIB,
        contents_gib=contents / _GIB,
        host_save_gib=(save + writer) / _GIB,
        host_load_gib=load / _GIB,
        node_save_gib=(save + writer) * cluster.gpus_per_node / _GIB,
        node_load_gib=load * cluster.gpus_per_node / _GIB,
        seconds_to_load=2 * total / 1e9 / storage_gb_per_s,
    )
