"""The process behind `emma plan --simulate`: `python -P -m emma.tools.plan.simulated_ranks FOLDER`.

Reads `FOLDER/recipe.yaml`, imports Megatron once, forks a process per simulated rank, writes
`FOLDER/result.json`.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from itertools import islice
from pathlib import Path
from typing import Any

from emma.base.files import read_json, write_json
from emma.recipes.compose import compose_file
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.parameters import rank_parameters
from emma.tools.plan.simulated_traffic import simulate_traffic
from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.training.arguments import megatron_arguments

# Bytes per parameter while buffers are built: weights twice (module and buffer) and FP32 gradients.
_BUILD_BYTES = 2 + 2 + 4


def main(folder: Path) -> int:
    """Simulates one rank of each stage and tensor-parallel position; returns the exit code."""
    from emma import megatron_patches

    megatron_patches.apply()
    # Imported here, so that the forked processes need not.
    import megatron.core.tokenizers.text
    import megatron.training  # noqa: F401

    # The recipe was checked for its real cluster. Here only its shapes matter, on a machine that could not
    # run it.
    recipe = Recipe.model_validate(compose_file(folder / "recipe.yaml").values)
    p = recipe.parallelism
    results = []
    for stage in range(p.pipeline):
        for tensor_rank in range(p.tensor):
            output = folder / f"rank-{stage}-{tensor_rank}.json"
            child = os.fork()
            if child == 0:
                os._exit(_forked(recipe, stage, tensor_rank, output))
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                return 1
            results.append(read_json(output))
    write_json(folder / "result.json", {"ranks": results})
    return 0


def _forked(recipe: Recipe, stage: int, tensor_rank: int, output: Path) -> int:
    try:
        write_json(output, _simulate_rank(recipe, stage, tensor_rank))
    except BaseException:  # noqa: BLE001  a forked process must not unwind into its parent's frames
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _simulate_rank(recipe: Recipe, stage: int, tensor_rank: int) -> dict[str, Any]:
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron

    from emma.tools.training.network import configure_model

    p, world = recipe.parallelism, recipe.cluster.world_size
    # Ranks are numbered by tensor first, then data, pipeline last.
    rank = stage * (world // p.pipeline) + tensor_rank
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29500"
    )
    nowhere = Path(os.devnull)
    arguments = megatron_arguments(recipe, LoadPlan("scratch"), 0, nowhere, None)
    # Weights stay unset: memory costs nothing until it is touched.
    sys.argv = ["emma-plan", *arguments, "--fake-process-group", "--no-initialization"]
    args = parse_and_validate_args()
    config = gpt_config_from_args(args)
    configure_model(config, recipe.model)
    container = pretrain_cfg_container_from_args(args, config)
    initialize_megatron()
    builder = config.get_builder_cls()(config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    needed = rank_parameters(recipe.model, p.tensor, p.pipeline, stage).total * _BUILD_BYTES
    # The buffers of one rank of a stage represent those of its tensor-parallel neighbours.
    with_buffers = tensor_rank == 0 and needed < _available_bytes()
    saved_by_rows = p.distributed_optimizer and recipe.checkpoint.reshardable
    skipped = None
    if tensor_rank == 0 and not with_buffers:
        skipped = (
            f"stage {stage}: gradient and optimizer buffers not built: they take {needed / 2**30:.0f} GiB, "
            f"{_available_bytes() / 2**30:.0f} GiB are free"
        )
    chunks = builder.build_distributed_models(
        pg_collection=groups, ddp_config=container.ddp, wrap_with_ddp=with_buffers
    )
    return {
        "stage": stage,
        "tensor_rank": tensor_rank,
        "rank": rank,
        "parameters": [sum(weight.numel() for weight in chunk.parameters()) for chunk in chunks],
        "data_parallel": args.data_parallel_size,
        "microbatches": get_num_microbatches(),
        "samples": _samples(recipe, args.data_parallel_size, get_num_microbatches()),
        "tensors": [tensor for chunk in chunks for tensor in _tensors(chunk)],
        "buffers": _buffers(args, chunks) if with_buffers else None,
        "traffic": simulate_traffic(args, chunks, container.ddp)
        if tensor_rank == 0 and saved_by_rows
        else None,
        "skipped": skipped,
    }


def _tensors(chunk: Any) -> list[dict[str, Any]]:
    """The chunk's pieces of checkpoint tensors, without the empty extra state."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
    from megatron.core.utils import unwrap_model

    state = unwrap_model(chunk).sharded_state_dict()
    apply_factories(state)
    return [
        {
            "key": tensor.key,
            "global_shape": list(tensor.global_shape),
            "local_shape": list(tensor.local_shape),
            "offset": list(tensor.global_offset),
            "main_replica": is_main_replica(tensor.replica_id),
        }
        for tensor in nested_values(state)
        if isinstance(tensor, ShardedTensor)
    ]


def _buffers(args: Any, chunks: list[Any]) -> dict[str, int]:
    """Elements of the gradient buffers and of this rank's main weights, and how many may be padding."""
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.training.training import get_megatron_optimizer_config

    config, _ = get_megatron_optimizer_config(args)
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    shard = sum(
        weight.numel()
        for part in parts
        for group in part.optimizer.param_groups
        for weight in group["params"]
    )
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers]
    weights = [weight for chunk in chunks for weight in chunk.parameters()]
    # Weights start at multiples of 64 elements; buckets end where all ranks can get equal shares.
    shards = args.data_parallel_size // args.num_distributed_optimizer_instances
    unit = math.lcm(shards, 2**16 if args.ddp_pad_buckets_for_high_nccl_busbw else 128)
    padding = 64 * len(weights) + unit * sum(len(buffer.buckets) for buffer in buffers)
    gradients = sum(buffer.grad_data.numel() for buffer in buffers)
    return {"gradients": gradients, "optimizer": shard, "most_padding": padding}


def _samples(recipe: Recipe, data_parallel: int, microbatches: int) -> dict[str, bool | str]:
    """Whether Megatron's samplers, over all ranks, read exactly the first and the last step's samples."""
    from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

    total, batch = recipe.total_samples, recipe.batch
    result: dict[str, bool | str] = {}
    for name, start in (("first", 0), ("last", total - batch.global_)):
        read: list[int] = []
        for rank in range(data_parallel):
            sampler = MegatronPretrainingSampler(
                total_samples=total,
                consumed_samples=start,
                micro_batch_size=batch.micro,
                data_parallel_rank=rank,
                data_parallel_size=data_parallel,
            )
            for samples in islice(sampler, microbatches):
                read += samples
        exact = sorted(read) == list(range(start, start + batch.global_))
        result[name] = (
            exact
            or f"{len(read)} samples, {len(set(read))} of them distinct, from {min(read)} to {max(read)}"
        )
    return result


def _available_bytes() -> int:
    """Memory available without swapping, from /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
