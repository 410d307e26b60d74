"""`emma plan --simulate`: the real model of every pipeline stage, built by Megatron at the full number of
ranks.

Megatron runs in a process of its own (`emma.tools.plan.simulated_ranks`) with a process group whose
communication does nothing, so that one machine without a GPU can be any rank of any cluster. The result is
compared with the plan.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from emma.base.errors import CheckFailedError
from emma.base.extras import need
from emma.base.files import read_json
from emma.recipes.load import write_recipe
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.parameters import rank_parameters
from emma.tools.arithmetic.traffic import BLOCK_BYTES, stage_shares

__all__ = ["Simulation", "expected_shapes", "simulate"]


@dataclass(frozen=True)
class Simulation:
    """What Megatron built, and where it differs from the plan."""

    ranks: tuple[dict[str, Any], ...]
    """One mapping per simulated rank: stage, tensor_rank, parameters of each chunk, buffers, tensors."""
    world_size: int
    """Ranks of the simulated job."""
    faults: tuple[str, ...]
    """Differences from the plan; empty if there are none."""
    notes: tuple[str, ...]
    """What was simulated differently from the real run, or not at all."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the tensors of each rank are counted, not listed."""
        ranks = [{**rank, "tensors": len(rank["tensors"])} for rank in self.ranks]
        return {
            "world_size": self.world_size,
            "ranks": ranks,
            "faults": list(self.faults),
            "notes": list(self.notes),
        }


def simulate(recipe: Recipe) -> Simulation:
    """Builds one rank of every pipeline stage and tensor-parallel position, and compares them with the plan.

    Raises:
        UserError: Megatron or torch is not installed.
        CheckFailedError: Megatron could not build a rank; the message holds the end of its output.
    """
    need("train", "--simulate", "torch", "megatron")
    simulated, notes = _without_gpu(recipe)
    with tempfile.TemporaryDirectory(prefix="emma-simulate-") as folder:
        write_recipe(simulated, Path(folder) / "recipe.yaml")
        # Megatron must find no GPU: with the stand-in for CUDA, a rank lives in ordinary memory.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "emma.tools.plan.simulated_ranks", folder],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        result = Path(folder) / "result.json"
        if done.returncode or not result.is_file():
            lines = (done.stdout + done.stderr).strip().splitlines()
            # Megatron's complaint about an argument comes before the traceback.
            said = [line for line in lines[:-15] if ": error: " in line]
            tail = "\n".join(f"  {line}" for line in [*said, *lines[-15:]])
            raise CheckFailedError(f"Megatron could not build a rank of {recipe.name}:\n{tail}")
        ranks = read_json(result)["ranks"]
    notes += [rank["skipped"] for rank in ranks if rank["skipped"]]
    return Simulation(
        ranks=tuple(ranks),
        world_size=simulated.cluster.world_size,
        faults=tuple(_faults(recipe, ranks)),
        notes=tuple(notes),
    )


def _without_gpu(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The run as a machine without a GPU can build it: same shapes and ranks, other number formats."""
    notes = []
    context, world = recipe.parallelism.context, recipe.cluster.world_size
    cluster = {"device": "cpu", "launcher": "srun", "nodes": world // context, "gpus_per_node": 1}
    if context > 1:
        notes.append(
            f"context parallelism {context} is left out (it changes no shape): {world // context} ranks instead"
        )
    precision = recipe.precision
    if precision.fp8 is not None:
        notes.append("FP8 weights are built in BF16, with the same shapes")
        precision = precision.model_copy(
            update={"fp8": None, "fp8_params": False, "first_last_layers_bf16": 0}
        )
    fp32 = {"exp_avg_dtype": "fp32", "exp_avg_sq_dtype": "fp32", "main_params_dtype": "fp32"}
    if any(getattr(recipe.optimizer, key) != "fp32" for key in fp32):
        notes.append("optimizer states are built in FP32, with the same sizes")
    changes = {
        "cluster": recipe.cluster.model_copy(update=cluster),
        "precision": precision,
        "parallelism": recipe.parallelism.model_copy(update={"context": 1}),
        "optimizer": recipe.optimizer.model_copy(update=fp32),
        "checkpoint": recipe.checkpoint.model_copy(update={"asynchronous": False}),
    }
    return recipe.model_copy(update=changes), notes


def expected_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Global shapes of a checkpoint's tensors by Megatron's names, stacked over layers, vocabulary padded."""
    return recipe.model.checkpoint_tensors(recipe.model.padded_vocab_size(recipe.parallelism.tensor))


def _faults(recipe: Recipe, ranks: list[dict[str, Any]]) -> Iterator[str]:
    p = recipe.parallelism
    for rank in ranks:
        where = f"stage {rank['stage']}, tensor rank {rank['tensor_rank']}"
        planned = rank_parameters(recipe.model, p.tensor, p.pipeline, rank["stage"]).total
        built = sum(rank["parameters"])
        if built != planned:
            yield f"{where}: Megatron built {built:,} parameters, but the plan says {planned:,}"
        if len(rank["parameters"]) != p.virtual_pipeline:
            yield f"{where}: {len(rank['parameters'])} model chunks, but the plan says {p.virtual_pipeline}"
        if rank["data_parallel"] != recipe.data_parallel:
            yield f"{where}: data-parallel size {rank['data_parallel']}, but the plan says {recipe.data_parallel}"
        microbatches = recipe.batch.global_ // (recipe.batch.micro * recipe.data_parallel)
        if rank["microbatches"] != microbatches:
            yield f"{where}: {rank['microbatches']} micro-batches per step, but the plan says {microbatches}"
        yield from _buffer_faults(recipe, rank, where, planned)
        yield from _traffic_faults(recipe, rank, where)
        for name, held in rank["samples"].items():
            if held is not True:
                yield f"{where}: at the {name} step the ranks together do not read the planned samples: {held}"
    yield from _shape_faults(recipe, ranks)


def _buffer_faults(recipe: Recipe, rank: dict[str, Any], where: str, planned: int) -> Iterator[str]:
    """Gradients number one per weight, plus padding; the rank's optimizer has its share of them."""
    buffers, p = rank["buffers"], recipe.parallelism
    if buffers is None:
        return
    shards = recipe.data_parallel // p.distributed_optimizer_instances if p.distributed_optimizer else 1
    most = planned + buffers["most_padding"]
    if not planned <= buffers["gradients"] <= most:
        yield f"{where}: {buffers['gradients']:,} gradients, but the plan says {planned:,} to {most:,} with padding"
    if abs(buffers["optimizer"] - planned / shards) > buffers["most_padding"] / shards + 1:
        yield f"{where}: {buffers['optimizer']:,} weights in the optimizer, but the plan says {planned / shards:,.0f}"


def _traffic_faults(recipe: Recipe, rank: dict[str, Any], where: str) -> Iterator[str]:
    """Data-parallel ranks save the same number of bytes, which the plan knows; and so is what they hold meanwhile."""
    traffic = rank["traffic"]
    if traffic is None:
        return
    plan = stage_shares(recipe, rank["stage"], len(traffic["bytes"]))
    for name, planned in (("bytes", plan.weights + plan.states), ("rows", plan.rows)):
        # Blocks and rows are dealt whole.
        spare = 0.02 * planned + BLOCK_BYTES
        for number in (min(traffic[name]), max(traffic[name])):
            if abs(number - planned) > spare:
                what = "written by" if name == "bytes" else "of optimizer states in the host memory of"
                yield f"{where}: {number:,} bytes {what} a rank at a save, but the plan says {planned:,.0f}"


def _shape_faults(recipe: Recipe, ranks: list[dict[str, Any]]) -> Iterator[str]:
    """Unexpected global shapes, and tensors that the ranks' pieces do not cover exactly once."""
    expected = expected_shapes(recipe)
    pieces: dict[str, set[tuple[int, ...]]] = {}
    covered: dict[str, int] = {}
    for rank in ranks:
        for tensor in rank["tensors"]:
            key, shape = tensor["key"], tuple(tensor["global_shape"])
            if shape != expected.get(key):
                yield f"{key}: shape {shape}, expected {expected.get(key, 'no such tensor')}"
                continue
            offset = tuple(tensor["offset"])
            if not tensor["main_replica"] or offset in pieces.setdefault(key, set()):
                continue
            pieces[key].add(offset)
            covered[key] = covered.get(key, 0) + prod(tensor["local_shape"])
    for key, shape in expected.items():
        if covered.get(key, 0) != prod(shape):
            yield f"{key}: the ranks hold {covered.get(key, 0):,} of {prod(shape):,} elements"
