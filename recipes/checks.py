"""What must hold between the sections of a recipe: an impossible combination is refused with its numbers and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from emma.base.errors import RecipeError
from emma.recipes import devices
from emma.recipes.checks_of_layers import kernels, recomputation
from emma.recipes.schema import Recipe

__all__ = ["check_combination"]

Fault = tuple[str, str, str]
"""Dotted key, problem, fix."""

# Megatron arguments that would break a guarantee of this project, and why.
REFUSED_MEGATRON_ARGS = {
    "allow-ambiguous-pad-tokens": "it masks the loss of every token that equals the pad id",
    "no-load-optim": "start.mode says how a run starts",
    "no-load-rng": "start.mode says how a run starts",
    "finetune": "start.mode says how a run starts",
    "load": "the checkpoint to start from is start.checkpoint",
    "save": "checkpoints are written into the run folder",
    "data-path": "the data is the recipe's mix",
    "split": "the mix has its own validation data",
    "train-iters": "it is schedule.steps",
    "train-samples": "it is schedule.steps × batch.global",
    "override-opt-param-scheduler": "a phase takes its learning rate from the recipe already",
    # What planning, sample arithmetic and logs read from the sections must hold in the training loop.
    "tensor-model-parallel-size": "it is parallelism.tensor",
    "pipeline-model-parallel-size": "it is parallelism.pipeline",
    "context-parallel-size": "it is parallelism.context",
    "micro-batch-size": "it is batch.micro",
    "global-batch-size": "it is batch.global",
    "rampup-batch-size": "steps × batch.global would no longer be the number of samples",
    "seq-length": "it is batch.sequence_length",
    "lr": "it is schedule.learning_rate",
    "min-lr": "it is schedule.min_learning_rate",
    "seed": "it is the recipe's seed",
    "fp8-format": "it is precision.fp8_format",
    "fp8-recipe": "it is precision.fp8",
    "fp16": "its loss scaling is not supported; see precision.compute",
}


def check_combination(recipe: Recipe, origin: Callable[[Sequence[str | int]], str | None]) -> None:
    """Checks a whole recipe.

    Args:
        recipe: a recipe whose sections are each valid.
        origin: `file:line` of a key, for the message.

    Raises:
        RecipeError: the first combination that cannot work.
    """
    for faults in (
        _cluster,
        _layout,
        recomputation,
        kernels,
        _distribution,
        _batch,
        _precision,
        _optimizer,
        _checkpoint,
        _train,
        _guard,
        _passed_through,
    ):
        for key, problem, fix in faults(recipe):
            raise RecipeError(key, problem, fix, origin(key.split(".")))


def _cluster(recipe: Recipe) -> Iterator[Fault]:
    cluster, p = recipe.cluster, recipe.parallelism
    if cluster.launcher == "torchrun" and cluster.nodes > 1:
        yield (
            "cluster.launcher",
            f"torchrun starts the ranks of one machine, but the cluster has {cluster.nodes} nodes",
            "use srun",
        )
    if p.tensor > cluster.gpus_per_node:
        yield (
            "parallelism.tensor",
            f"{p.tensor} exceeds the {cluster.gpus_per_node} GPUs of a node: every layer would wait for the network four "
            "times",
            f"use at most {cluster.gpus_per_node}, and pipeline parallelism across nodes",
        )


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
            f"{p.virtual_pipeline} needs a pipeline of at least 2 stages, but this one has 1",
            "set virtual_pipeline to 1 or pipeline to 2 or more",
        )
    if p.sequence and p.tensor == 1:
        yield (
            "parallelism.sequence",
            "sequence parallelism divides work over tensor-parallel ranks, of which there is 1",
            "set sequence to false or tensor to 2 or more",
        )
    yield from _context(recipe)


def _context(recipe: Recipe) -> Iterator[Fault]:
    """With masked documents, the heads of attention are divided over the ranks; without, keys travel in a ring."""
    model, p = recipe.model, recipe.parallelism
    if p.context == 1:
        return
    if recipe.batch.document_masking:
        if model.attention_heads % (p.tensor * p.context):
            yield (
                "parallelism.context",
                f"tensor × context = {p.tensor} × {p.context} does not divide the model's {model.attention_heads} attention "
                "heads, which masked documents divide over these ranks",
                "choose sizes whose product divides attention_heads, or set batch.document_masking to false",
            )
        return
    if recipe.cluster.device == "cpu":
        yield (
            "parallelism.context",
            f"context parallelism ({p.context}) without document masking needs Transformer Engine's attention, so a GPU; the "
            "cluster is `cpu`",
            "set context to 1 or batch.document_masking to true",
        )
    if model.sliding_window is not None:
        yield (
            "parallelism.context",
            f"context parallelism ({p.context}) without document masking passes keys around in a ring, which does not know the "
            "model's windows",
            "set batch.document_masking to true, or context to 1 (tensor 2 with sequence: true saves as much memory)",
        )


def _distribution(recipe: Recipe) -> Iterator[Fault]:
    p = recipe.parallelism
    if p.overlap_param_gather and not (p.distributed_optimizer and p.overlap_grad_reduce):
        yield (
            "parallelism.overlap_param_gather",
            "it needs distributed_optimizer and overlap_grad_reduce",
            "turn both on, or turn this off",
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
    micro_batches = batch.global_ // step
    if p.virtual_pipeline > 1 and micro_batches % p.pipeline:
        yield (
            "batch.global",
            f"{micro_batches} micro-batches per step are not a multiple of the {p.pipeline} pipeline stages, as the "
            "interleaved schedule requires",
            f"use a multiple of {step * p.pipeline}",
        )
    if p.pipeline > 1 and batch.micro > 1 and batch.document_masking and recipe.cluster.device != "cpu":
        # A stage awaits [sequence, micro, hidden] (Megatron's `get_tensor_shapes`) and is sent [micro × sequence, 1, hidden].
        yield (
            "batch.micro",
            f"{batch.micro} samples whose documents are packed become one sequence, of another shape than the one in which "
            "pipeline stages hand micro-batches on",
            "set it to 1, or batch.document_masking to false",
        )
    if batch.sequence_length > recipe.model.max_position_embeddings:
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is longer than the model's {recipe.model.max_position_embeddings} positions",
            "shorten it, or raise model.max_position_embeddings if the model is meant to learn longer contexts",
        )
    if p.context > 1 and batch.sequence_length % (2 * p.context):
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is not a multiple of 2 × context = {2 * p.context}",
            f"use a multiple of {2 * p.context}",
        )
    cuts = p.context * p.tensor if p.sequence else 1
    if batch.sequence_length % cuts:
        yield (
            "batch.sequence_length",
            f"{batch.sequence_length} is not a multiple of the {cuts} ranks that sequence and context parallelism divide it over",
            f"use a multiple of {cuts}",
        )


def _precision(recipe: Recipe) -> Iterator[Fault]:
    precision, device = recipe.precision, recipe.cluster.device
    if precision.fp8 is None:
        return
    if "fp8" not in devices.device(device).peak_by_format:
        yield (
            "precision.fp8",
            f"{precision.fp8} needs FP8 tensor cores, which `{device}` does not have",
            "use precision bf16, or fp32 on a CPU",
        )
    if precision.fp8 == "mxfp8" and device != "b200":
        yield (
            "precision.fp8",
            f"mxfp8 needs Blackwell, but the cluster has `{device}`",
            "use tensorwise or blockwise",
        )
    if precision.fp8 == "blockwise" and device == "b200":
        yield ("precision.fp8", "blockwise scaling is Hopper's, but the cluster has `b200`", "use mxfp8")
    if precision.fp8_params and not recipe.parallelism.distributed_optimizer:
        yield (
            "precision.fp8_params",
            "weights kept in FP8 need parallelism.distributed_optimizer, which keeps their exact copy",
            "turn it on, or turn fp8_params off",
        )
    if precision.fp8_params and not recipe.checkpoint.reshardable:
        yield (
            "precision.fp8_params",
            "weights kept in FP8 are released as the optimizer's main weights, which checkpoints tell apart only in the "
            "fully reshardable layout",
            "set checkpoint.reshardable to true, or turn fp8_params off",
        )
    stage = recipe.model.layers // recipe.parallelism.pipeline
    if precision.first_last_layers_bf16 > stage:
        yield (
            "precision.first_last_layers_bf16",
            f"{precision.first_last_layers_bf16} exceeds the {stage} layers of a pipeline stage",
            f"use at most {stage}",
        )
    yield from _fp8_shapes(recipe)
    if 2 * precision.first_last_layers_bf16 >= recipe.model.layers:
        yield (
            "precision.first_last_layers_bf16",
            f"{precision.first_last_layers_bf16} at each end leave none of {recipe.model.layers} layers in FP8",
            "lower it",
        )


def _fp8_shapes(recipe: Recipe) -> Iterator[Fault]:
    """Transformer Engine's FP8 matrix products need multiples of 16 (blockwise: 128) in every dimension."""
    model, p, batch = recipe.model, recipe.parallelism, recipe.batch
    unit = 128 if recipe.precision.fp8 == "blockwise" else 16
    rows = batch.micro * batch.sequence_length // (p.context * (p.tensor if p.sequence else 1))
    sizes = {
        "model.hidden_size": (model.hidden_size, ""),
        "model.ffn_hidden_size": (
            model.ffn_hidden_size // p.tensor,
            f" on each of {p.tensor} tensor-parallel ranks",
        ),
        "batch.sequence_length": (rows, " tokens per micro-batch and rank"),
    }
    for key, (size, where) in sizes.items():
        if size % unit:
            yield (
                key,
                f"{size}{where} is not a multiple of {unit}, which {recipe.precision.fp8} FP8 needs",
                "change it, or use precision bf16",
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


def _checkpoint(recipe: Recipe) -> Iterator[Fault]:
    checkpoint = recipe.checkpoint
    if checkpoint.keep_every is not None and checkpoint.keep_every % checkpoint.interval:
        yield (
            "checkpoint.keep_every",
            f"{checkpoint.keep_every} is not a multiple of checkpoint.interval ({checkpoint.interval}), so those steps are "
            "never saved",
            f"use a multiple of {checkpoint.interval}",
        )
    if checkpoint.asynchronous and recipe.cluster.device == "cpu":
        yield (
            "checkpoint.asynchronous",
            "saving in the background copies from GPU memory; the cluster is `cpu`",
            "set it to false",
        )


def _train(recipe: Recipe) -> Iterator[Fault]:
    if recipe.train is not None and recipe.start.mode == "phase":
        yield (
            "start.mode",
            "a phase takes over the moments of all weights, but train.only gives the frozen ones a group of their own",
            "use weights",
        )
    if recipe.train is not None and recipe.start.mode == "scratch":
        yield (
            "start.mode",
            "scratch makes new weights, of which train.only would leave most untrained",
            "use weights",
        )


def _guard(recipe: Recipe) -> Iterator[Fault]:
    guard, validation = recipe.guard, recipe.validation
    if guard is None:
        return
    if guard.base is None and recipe.start.mode in ("scratch", "resume"):
        yield (
            "guard",
            f"start.mode: {recipe.start.mode} has no base at its step 0 whose losses could be kept",
            "remove guard, start from weights, or name the run that has measured the base (guard.base)",
        )
    if guard.base is None and not validation.at_start:
        yield (
            "validation.at_start",
            "false, but the guard compares with the losses at step 0",
            "set it to true, or name the run that has measured the base (guard.base)",
        )
    if validation.groups is not None and (
        missing := [name for name in guard.groups if name not in validation.groups]
    ):
        yield (
            "validation.groups",
            f"`{missing[0]}` is guarded (guard.groups) but not evaluated",
            "add it, or remove it from guard.groups",
        )
    if guard.action == "replay" and recipe.train is not None:
        yield (
            "guard.action",
            "replay writes a phase, which takes over the moments of all weights, but train.only trains a part of them",
            "use stop or warn",
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
