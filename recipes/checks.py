"""What must hold between the sections of a recipe: each impossible combination is refused with its numbers and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from recipes.errors import RecipeError
from recipes.schema import Recipe

__all__ = ["check_combination"]

Fault = tuple[str, str, str]
"""Dotted key, problem, fix."""

# Megatron arguments that would undo a guarantee of this project, and why.
REFUSED_MEGATRON_ARGS = {
    "allow-ambiguous-pad-tokens": "it masks the loss of every token that equals the pad id",
    "no-load-optim": "how a run starts is said by start.mode",
    "no-load-rng": "how a run starts is said by start.mode",
    "finetune": "how a run starts is said by start.mode",
    "load": "the checkpoint to start from is start.checkpoint",
    "save": "checkpoints are written into the run folder",
    "data-path": "the data is the mix of the recipe",
    "split": "the mix holds its own validation data",
    "train-iters": "it is schedule.steps",
    "train-samples": "it is schedule.steps × batch.global",
    "override-opt-param-scheduler": "the learning rate of a phase is taken from the recipe already",
}


def check_combination(recipe: Recipe, origin: Callable[[Sequence[str | int]], str | None]) -> None:
    """Checks a whole recipe.

    Args:
        recipe: a recipe whose sections are valid by themselves.
        origin: where a key was given (`file:line`), for the message.

    Raises:
        RecipeError: the first combination that cannot work.
    """
    for faults in (_layout, _batch, _precision, _optimizer, _passed_through):
        for key, problem, fix in faults(recipe):
            raise RecipeError(key, problem, fix, origin(key.split(".")))


def _layout(recipe: Recipe) -> Iterator[Fault]:
    model, p, world = recipe.model, recipe.parallelism, recipe.cluster.world_size
    size = p.tensor * p.pipeline * p.context
    if world % size:
        yield (
            "parallelism",
            f"tensor × pipeline × context = {p.tensor} × {p.pipeline} × {p.context} = {size} does not divide "
            f"the {world} ranks of {recipe.cluster.nodes} nodes × {recipe.cluster.gpus_per_node}",
            "choose sizes whose product divides the number of ranks",
        )
    if model.attention_heads % p.tensor:
        yield (
            "parallelism.tensor",
            f"{p.tensor} does not divide the model's {model.attention_heads} attention heads",
            "use a divisor of attention_heads",
        )
    if model.query_groups % p.tensor:
        yield (
            "parallelism.tensor",
            f"{p.tensor} does not divide the model's {model.query_groups} query groups",
            "use a divisor of query_groups",
        )
    if model.ffn_hidden_size % p.tensor:
        yield (
            "parallelism.tensor",
            f"{p.tensor} does not divide ffn_hidden_size {model.ffn_hidden_size}",
            "use a divisor of ffn_hidden_size",
        )
    chunks = p.pipeline * p.virtual_pipeline
    if model.layers % chunks:
        yield (
            "parallelism.pipeline",
            f"pipeline × virtual_pipeline = {p.pipeline} × {p.virtual_pipeline} does not divide the model's {model.layers} layers",
            "choose a product that divides the layers",
        )
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield (
            "parallelism.virtual_pipeline",
            f"{p.virtual_pipeline} needs a pipeline of at least 2 stages, this one has 1",
            "set virtual_pipeline to 1 or pipeline to 2 or more",
        )
    if p.sequence and p.tensor == 1:
        yield (
            "parallelism.sequence",
            "sequence parallelism cuts over tensor-parallel ranks, of which there is 1",
            "set sequence to false or tensor to 2 or more",
        )
    if p.context > 1 and recipe.cluster.device == "cpu":
        yield (
            "parallelism.context",
            f"context parallelism ({p.context}) needs Transformer Engine's attention, so a GPU; the cluster is `cpu`",
            "set context to 1",
        )
    if p.recompute_layers is not None and p.recompute != "full":
        yield (
            "parallelism.recompute_layers",
            f"it goes with recompute: full, not {p.recompute}",
            "remove it or set recompute: full",
        )
    if p.recompute_layers is not None and p.recompute_layers > model.layers // p.pipeline:
        yield (
            "parallelism.recompute_layers",
            f"{p.recompute_layers} is more than the {model.layers // p.pipeline} layers of a pipeline stage",
            "use at most the layers of a stage",
        )
    if p.overlap_param_gather and not (p.distributed_optimizer and p.overlap_grad_reduce):
        yield (
            "parallelism.overlap_param_gather",
            "it needs distributed_optimizer and overlap_grad_reduce",
            "turn both on, or this off",
        )
    instances = p.distributed_optimizer_instances
    if instances > 1 and (not p.distributed_optimizer or recipe.data_parallel % instances):
        yield (
            "parallelism.distributed_optimizer_instances",
            f"{instances} must divide the data-parallel size {recipe.data_parallel}, with distributed_optimizer on",
            "use a divisor of the data-parallel size",
        )


def _batch(recipe: Recipe) -> Iterator[Fault]:
    batch, p = recipe.batch, recipe.parallelism
    step = batch.micro * recipe.data_parallel
    if batch.global_ % step:
        yield (
            "batch.global",
            f"{batch.global_} is not a multiple of micro × data-parallel size = {batch.micro} × {recipe.data_parallel} = {step}",
            f"use a multiple of {step}",
        )
    microbatches = batch.global_ // step
    if p.virtual_pipeline > 1 and microbatches % p.pipeline:
        yield (
            "batch.global",
            f"{microbatches} microbatches a step are not a multiple of the {p.pipeline} pipeline stages, which the "
            "interleaved schedule needs",
            f"use a multiple of {step * p.pipeline}",
        )
    if batch.sequence_length > recipe.model.max_position_embeddings:
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is longer than the model's {recipe.model.max_position_embeddings} positions",
            "shorten it, or raise model.max_position_embeddings if the model is meant to learn longer contexts",
        )
    cuts = p.tensor if p.sequence else 1
    if batch.sequence_length % cuts:
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is not a multiple of the {cuts} ranks that sequence parallelism cuts it over",
            f"use a multiple of {cuts}",
        )
    if p.context > 1 and batch.sequence_length % (2 * p.context):
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is not a multiple of 2 × context = {2 * p.context}",
            f"use a multiple of {2 * p.context}",
        )


def _precision(recipe: Recipe) -> Iterator[Fault]:
    precision, device = recipe.precision, recipe.cluster.device
    if precision.fp8 is None:
        return
    if device in ("cpu", "a100"):
        yield (
            "precision.fp8",
            f"{precision.fp8} needs FP8 tensor cores, which `{device}` does not have",
            "use precision bf16, or fp32 on a CPU",
        )
    if precision.fp8 == "mxfp8" and device != "b200":
        yield (
            "precision.fp8",
            f"mxfp8 needs Blackwell, the cluster has `{device}`",
            "use tensorwise or blockwise",
        )
    if precision.fp8 == "blockwise" and device == "b200":
        yield ("precision.fp8", "blockwise scaling is Hopper's, the cluster has `b200`", "use mxfp8")
    if 2 * precision.first_last_layers_bf16 >= recipe.model.layers:
        yield (
            "precision.first_last_layers_bf16",
            f"{precision.first_last_layers_bf16} at either end leave no layer of {recipe.model.layers} in FP8",
            "lower it",
        )


def _optimizer(recipe: Recipe) -> Iterator[Fault]:
    optimizer = recipe.optimizer
    kinds = (optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype, optimizer.main_params_dtype)
    if any(kind != "fp32" for kind in kinds):
        if recipe.cluster.device == "cpu":
            yield (
                "optimizer.exp_avg_dtype",
                f"states in {', '.join(kinds)} need Transformer Engine's optimizer, so a GPU; the cluster is `cpu`",
                "use fp32 for all three",
            )
        if not recipe.parallelism.distributed_optimizer:
            yield (
                "optimizer.exp_avg_dtype",
                f"states in {', '.join(kinds)} need parallelism.distributed_optimizer",
                "turn it on or use fp32",
            )
    if recipe.checkpoint.asynchronous and recipe.cluster.device == "cpu":
        yield (
            "checkpoint.asynchronous",
            "saving in the background copies from GPU memory; the cluster is `cpu`",
            "set it to false",
        )


def _passed_through(recipe: Recipe) -> Iterator[Fault]:
    for name in recipe.megatron_args:
        bare = name.lstrip("-").replace("_", "-")
        if bare in REFUSED_MEGATRON_ARGS:
            yield (
                f"megatron_args.{name}",
                f"`--{bare}` is refused: {REFUSED_MEGATRON_ARGS[bare]}",
                "remove it",
            )
        elif bare != name:
            yield (
                f"megatron_args.{name}",
                "arguments are named without leading dashes, with hyphens",
                f"write `{bare}`",
            )
