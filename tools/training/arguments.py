"""From a recipe to the command-line arguments of Megatron's own training loop (megatron-core 0.19.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emma.base.errors import RecipeError
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan

__all__ = ["megatron_arguments"]


# Fusions and kernels that need CUDA; off on a machine without it. The unfused paths compute the same.
_CPU_ARGUMENTS = (
    "--distributed-backend gloo --use-cpu-initialization --transformer-impl local --attention-backend unfused "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion --no-rope-fusion "
    "--no-gradient-accumulation-fusion --no-persist-layer-norm"
).split()

# cuDNN's and FlashAttention's kernels, the fused loss, and garbage collection at the same step on all ranks.
_GPU_ARGUMENTS = (
    "--distributed-backend nccl --transformer-impl transformer_engine --attention-backend auto "
    "--cross-entropy-loss-fusion --cross-entropy-fusion-impl native --no-gradient-accumulation-fusion "
    "--manual-gc --manual-gc-interval 100"
).split()


def megatron_arguments(
    recipe: Recipe,
    load: LoadPlan,
    end_of_text: int,
    checkpoints: Path,
    tensorboard: Path | None,
    skip: Sequence[int] = (),
) -> list[str]:
    """Arguments for `megatron.training`, in the order model, layout, batch, schedule, start, output.

    Args:
        recipe: a checked recipe.
        load: what this launch begins from.
        end_of_text: id of the token that ends a document in the mix.
        checkpoints: folder that checkpoints are written to.
        tensorboard: folder of TensorBoard's events, or None.
        skip: steps whose batch is read and not trained on.

    Raises:
        RecipeError: a value that Megatron 0.19.2 cannot take.
    """
    arguments = [
        *_model(recipe, end_of_text),
        *_layout(recipe),
        *_precision(recipe),
        *_schedule(recipe),
        *_masking(recipe),
        *_start(load),
        *(["--iterations-to-skip", *map(str, skip)] if skip else []),
        *_output(recipe, checkpoints, tensorboard),
        *(_CPU_ARGUMENTS if recipe.cluster.device == "cpu" else _GPU_ARGUMENTS),
    ]
    return _with_passed_through(arguments, recipe)


def _model(recipe: Recipe, end_of_text: int) -> list[str]:
    model = recipe.model
    if model.rope_theta != int(model.rope_theta):
        raise RecipeError(
            "model.rope_theta", f"{model.rope_theta} is no whole number", "Megatron takes whole numbers only"
        )
    arguments = [
        *(
            "--num-layers",
            model.layers,
            "--hidden-size",
            model.hidden_size,
            "--ffn-hidden-size",
            model.ffn_hidden_size,
        ),
        *("--num-attention-heads", model.attention_heads, "--kv-channels", model.channels),
        *("--group-query-attention", "--num-query-groups", model.query_groups),
        *(
            "--seq-length",
            recipe.batch.sequence_length,
            "--max-position-embeddings",
            model.max_position_embeddings,
        ),
        *("--position-embedding-type", "rope", "--rotary-base", int(model.rope_theta)),
        *(
            "--normalization",
            "RMSNorm",
            "--norm-epsilon",
            model.norm_epsilon,
            "--swiglu",
            "--disable-bias-linear",
        ),
        *("--attention-dropout", 0.0, "--hidden-dropout", 0.0, "--init-method-std", model.init_std),
        *("--vocab-size", model.vocab_size, "--make-vocab-size-divisible-by", model.vocab_padding),
        *("--tokenizer-type", "NullTokenizer", "--null-tokenizer-eod-id", end_of_text),
        # Padding is known by its place, not by an id: -1 is no token.
        *("--null-tokenizer-pad-id", -1),
    ]
    if model.rope_scaling is not None:
        # The other constants have no argument; the worker sets all of them on the model's config.
        arguments += ["--use-rope-scaling", "--rope-scaling-factor", model.rope_scaling.factor]
    if not model.tie_embeddings:
        arguments.append("--untie-embeddings-and-output-weights")
    return [str(argument) for argument in arguments]


def _layout(recipe: Recipe) -> list[str]:
    p = recipe.parallelism
    arguments = [
        *("--tensor-model-parallel-size", p.tensor, "--pipeline-model-parallel-size", p.pipeline),
        *("--context-parallel-size", p.context),
        *("--micro-batch-size", recipe.batch.micro, "--global-batch-size", recipe.batch.global_),
    ]
    if p.virtual_pipeline > 1:
        arguments += ["--num-virtual-stages-per-pipeline-rank", p.virtual_pipeline]
    if p.sequence:
        arguments.append("--sequence-parallel")
    if p.distributed_optimizer:
        arguments.append("--use-distributed-optimizer")
        arguments += ["--num-distributed-optimizer-instances", p.distributed_optimizer_instances]
    if p.overlap_grad_reduce:
        arguments.append("--overlap-grad-reduce")
    if p.overlap_param_gather:
        arguments.append("--overlap-param-gather")
    if p.recompute == "selective":
        arguments += ["--recompute-granularity", "selective"]
    elif p.recompute == "full":
        layers = p.recompute_layers or recipe.model.layers // p.pipeline
        arguments += [
            "--recompute-granularity",
            "full",
            "--recompute-method",
            "block",
            "--recompute-num-layers",
            layers,
        ]
    return [str(argument) for argument in arguments]


def _precision(recipe: Recipe) -> list[str]:
    precision, optimizer = recipe.precision, recipe.optimizer
    arguments: list[object] = []
    if precision.compute == "bf16":
        arguments.append("--bf16")
        arguments.append(
            "--accumulate-allreduce-grads-in-fp32" if precision.grad_reduce_fp32 else "--grad-reduce-in-bf16"
        )
    if precision.fp8 is not None:
        arguments += ["--fp8-format", precision.fp8_format, "--fp8-recipe", precision.fp8]
        if precision.fp8 == "delayed":
            # Transformer Engine's own defaults of delayed scaling are one step; Megatron's published runs use these.
            arguments += ["--fp8-amax-history-len", 1024, "--fp8-amax-compute-algo", "max"]
        if precision.fp8_params:
            arguments.append("--fp8-param-gather")
        if precision.first_last_layers_bf16:
            count = precision.first_last_layers_bf16
            arguments += ["--first-last-layers-bf16", "--num-layers-at-start-in-bf16", count]
            arguments += ["--num-layers-at-end-in-bf16", count]
    states = (optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype, optimizer.main_params_dtype)
    if any(state != "fp32" for state in states):
        arguments += [
            "--use-precision-aware-optimizer",
            "--exp-avg-dtype",
            states[0],
            "--exp-avg-sq-dtype",
            states[1],
        ]
        arguments += ["--main-params-dtype", states[2]]
    return [str(argument) for argument in arguments]


def _schedule(recipe: Recipe) -> list[str]:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    style = "WSD" if schedule.decay == "wsd" else schedule.decay
    arguments = [
        *(
            "--train-iters",
            schedule.steps,
            "--lr",
            schedule.learning_rate,
            "--min-lr",
            schedule.min_learning_rate,
        ),
        *(
            "--lr-warmup-iters",
            schedule.warmup_steps,
            "--lr-decay-style",
            style,
            "--lr-decay-iters",
            schedule.steps,
        ),
        *("--optimizer", "adam", "--adam-beta1", optimizer.beta1, "--adam-beta2", optimizer.beta2),
        *(
            "--adam-eps",
            optimizer.epsilon,
            "--weight-decay",
            optimizer.weight_decay,
            "--clip-grad",
            optimizer.clip_grad,
        ),
        *("--seed", recipe.seed),
        # Padding and document ends make micro-batches differ in tokens that count; the loss is the mean over tokens
        # of the whole global batch, whatever the layout.
        "--calculate-per-token-loss",
        # The project's own evaluator runs at the seams of the loop; Megatron's is never called.
        *("--eval-iters", 0, "--eval-interval", schedule.steps),
    ]
    if optimizer.clip_grad > 0:
        # The session looks at the gradient norm of each step (tools/runs/safety.py) and goes back; Megatron's own
        # check would end one rank and leave the others waiting. Without clipping there is no norm, and it stays.
        arguments.append("--no-check-for-nan-in-loss-and-grad")
    if schedule.wsd_decay_steps is not None:
        arguments += ["--lr-wsd-decay-iters", schedule.wsd_decay_steps, "--lr-wsd-decay-style", "linear"]
    return [str(argument) for argument in arguments]


def _masking(recipe: Recipe) -> list[str]:
    """Documents see only themselves: packed sequences with Transformer Engine, a dense mask without it (which
    Transformer Engine would silently ignore)."""
    arguments = ["--dataloader-type", "single"]
    if not recipe.batch.document_masking:
        return [*arguments, "--no-create-attention-mask-in-dataloader"]
    if recipe.cluster.device == "cpu":
        return [*arguments, "--reset-attention-mask", "--reset-position-ids"]
    return [*arguments, "--dataloader-inter-document-masking", "--no-create-attention-mask-in-dataloader"]


def _start(load: LoadPlan) -> list[str]:
    if load.mode == "scratch":
        return []
    arguments = ["--load", str(load.folder), "--exit-on-missing-checkpoint"]
    if load.step is not None:
        arguments += ["--ckpt-step", str(load.step)]
    if load.mode == "weights":
        arguments += ["--finetune", "--no-load-optim", "--no-load-rng"]
    elif load.mode == "phase":
        # The optimizer's moments are loaded; step, schedule and learning rate are set back by the worker.
        arguments += ["--no-load-rng", "--override-opt_param-scheduler"]
    return arguments


def _output(recipe: Recipe, checkpoints: Path, tensorboard: Path | None) -> list[str]:
    checkpoint = recipe.checkpoint
    arguments = [
        *("--save", checkpoints, "--save-interval", checkpoint.interval, "--ckpt-format", "torch_dist"),
        *("--exit-signal-handler", "--log-interval", recipe.logging.interval, "--num-workers", 0),
    ]
    if checkpoint.reshardable and recipe.parallelism.distributed_optimizer:
        arguments += ["--ckpt-fully-parallel-save", "--dist-ckpt-optim-fully-reshardable"]
    if checkpoint.asynchronous:
        arguments += ["--async-save", "--async-strategy", "mcore", "--use-persistent-ckpt-worker"]
    if recipe.logging.wandb_project is not None:
        arguments += ["--wandb-project", recipe.logging.wandb_project, "--wandb-exp-name", recipe.name]
        arguments += ["--wandb-save-dir", checkpoints.parent / "wandb"]
    if tensorboard is not None:
        arguments += ["--tensorboard-dir", tensorboard, "--tensorboard-log-interval", recipe.logging.interval]
    return [str(argument) for argument in arguments]


def _with_passed_through(arguments: list[str], recipe: Recipe) -> list[str]:
    """Appends `megatron_args`; argparse takes the last of repeated options, and `false` drops a switch set above."""
    result = list(arguments)
    for name, value in recipe.megatron_args.items():
        flag = f"--{name}"
        if value is True:
            result.append(flag)
        elif value is False:
            result = [argument for argument in result if argument != flag]
        else:
            result += [flag, *map(str, value if isinstance(value, list) else [value])]
    return result
