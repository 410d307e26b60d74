"""From a recipe to the command-line arguments of Megatron's training loop (megatron-core 0.19.2).

Each group of arguments is a table of flag and value, written like `megatron_args` of a recipe: the flag
without its dashes; True for a switch; False or None for a flag that is left out; a list for a flag with
several values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emma.base.errors import RecipeError
from emma.recipes.schema import Recipe
from emma.recipes.schema.architecture import Kind, Network
from emma.recipes.schema.model import Shape
from emma.recipes.schema.training import OWN_CURVES
from emma.tools.runs.checkpoints import LoadPlan

__all__ = ["beyond_arguments", "command_line", "megatron_arguments", "model_flags"]


Flags = dict[str, object]

# Fusions and kernels that need CUDA are off on a machine without it. The unfused paths compute the same.
_CPU: Flags = {
    "distributed-backend": "gloo",
    "use-cpu-initialization": True,
    "transformer-impl": "local",
    "attention-backend": "unfused",
    "no-masked-softmax-fusion": True,
    "no-bias-swiglu-fusion": True,
    "no-bias-dropout-fusion": True,
    "no-rope-fusion": True,
    "no-gradient-accumulation-fusion": True,
    "no-persist-layer-norm": True,
}

# cuDNN's and FlashAttention's kernels, the fused loss, and garbage collection at the same step on all ranks.
_GPU: Flags = {
    "distributed-backend": "nccl",
    "transformer-impl": "transformer_engine",
    "attention-backend": "auto",
    "cross-entropy-loss-fusion": True,
    "cross-entropy-fusion-impl": "native",
    "manual-gc": True,
    "manual-gc-interval": 100,
}


def megatron_arguments(
    recipe: Recipe,
    load: LoadPlan,
    end_of_text: int,
    checkpoints: Path,
    tensorboard: Path | None,
    skip: Sequence[int] = (),
) -> list[str]:
    """Arguments for `megatron.training`, in the order model, layout, precision, schedule, data, start,
    output, device.

    The recipe's `megatron_args` come last: argparse takes the last of repeated options, and `false` leaves
    out a flag of the tables.

    Args:
        recipe: a checked recipe.
        load: what this launch starts from.
        end_of_text: id of the token that ends a document in the mix.
        checkpoints: folder that checkpoints are written to.
        tensorboard: folder of TensorBoard's events, or None.
        skip: steps whose batch is read but not trained on.

    Raises:
        RecipeError: a value that Megatron 0.19.2 cannot take.
    """
    flags = {
        **_model(recipe, end_of_text),
        **_layout(recipe),
        **_precision(recipe),
        **_schedule(recipe),
        **_documents(recipe),
        **_start(load),
        "iterations-to-skip": list(skip) or None,
        **_output(recipe, checkpoints, tensorboard),
        **(_CPU if recipe.cluster.device == "cpu" else _GPU),
    }
    given = recipe.megatron_args
    return [
        *command_line({name: value for name, value in flags.items() if given.get(name) is not False}),
        *command_line(given),
    ]


def command_line(flags: Mapping[str, object]) -> list[str]:
    """A table of flags as words of a command line."""
    arguments: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        arguments.append(f"--{name}")
        if value is not True:
            arguments += map(str, value if isinstance(value, list) else [value])
    return arguments


def _model(recipe: Recipe, end_of_text: int) -> Flags:
    model = recipe.model
    if model.rope_theta != int(model.rope_theta):
        raise RecipeError(
            "model.rope_theta",
            f"{model.rope_theta} is not a whole number",
            "Megatron takes whole numbers only",
        )
    return {
        **model_flags(model),
        "seq-length": recipe.batch.sequence_length,
        "init-method-std": model.init_std,
        "tokenizer-type": "NullTokenizer",
        "null-tokenizer-eod-id": end_of_text,
        # Padding is known by its position, not by an id: -1 is no token.
        "null-tokenizer-pad-id": -1,
    }


def model_flags(model: Shape) -> Flags:
    """Arguments that describe a model; `network.configure` sets what no argument reaches.

    Args:
        model: a shape whose rope_theta is a whole number.
    """
    network, kinds, scaling = model.network, model.kinds, model.rope_scaling
    windows, without_rope = (_per_layer(kind, kinds) for kind in ("sliding", "nope"))
    return {
        "num-layers": model.layers,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.attention_heads,
        "kv-channels": model.channels,
        "group-query-attention": True,
        "num-query-groups": model.query_groups,
        "max-position-embeddings": model.max_position_embeddings,
        "position-embedding-type": "rope",
        "rotary-base": int(model.rope_theta),
        "normalization": "RMSNorm",
        "norm-epsilon": model.norm_epsilon,
        "apply-layernorm-1p": network.zero_centred,
        # This says that there is a gate; another activation than SiLU is set on the model's config.
        "swiglu": network.gated,
        "no-bias-swiglu-fusion": network.gated and network.activation != "swiglu",
        "no-bias-gelu-fusion": not network.gated,
        "disable-bias-linear": True,
        "add-qkv-bias": network.qkv_bias,
        "qk-layernorm": network.qk_norm != "none",
        # Each token sees itself and so many before it. 1 marks a layer with a window, and one without rotary embedding.
        "window-size": None if model.sliding_window is None else f"({model.sliding_window - 1},0)",
        "window-attn-skip-freq": windows,
        "no-rope-freq": without_rope,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "vocab-size": model.vocab_size,
        "make-vocab-size-divisible-by": model.vocab_padding,
        # The other constants have no argument; the worker sets all of them on the model's config.
        "use-rope-scaling": scaling is not None and scaling.type == "llama3",
        "rope-scaling-factor": scaling.factor if scaling is not None and scaling.type == "llama3" else None,
        "untie-embeddings-and-output-weights": not model.tie_embeddings,
    }


def beyond_arguments(model: Shape) -> list[tuple[str, object]]:
    """Switches and values that no argument reaches, with their names in architecture and recipe."""
    network, plain = model.network, Network()
    switches = ("norms", "activation", "embedding_scale")
    found: list[tuple[str, object]] = [
        (name, getattr(network, name)) for name in switches if getattr(network, name) != getattr(plain, name)
    ]
    if network.qk_norm == "all":
        found.append(("qk_norm", "all"))
    if network.zero_centred:
        # Of Transformer Engine's norm there is one; the local norm is patched.
        found.append(("zero_centred", True))
    if model.score_scale != model.channels:
        found.append(("query_scale", model.score_scale))
    if len({model.rope(kind) for kind in model.kinds}) > 1:
        found.append(("rope", "by_kind"))
    return found


def _per_layer(kind: Kind, kinds: Sequence[Kind]) -> str | None:
    """`[1,0,…]` with 1 where a layer is of the kind; one word, as Megatron reads it."""
    return f"[{','.join(str(int(one == kind)) for one in kinds)}]" if kind in kinds else None


def _layout(recipe: Recipe) -> Flags:
    p = recipe.parallelism
    full = p.recompute == "full"
    return {
        "tensor-model-parallel-size": p.tensor,
        "pipeline-model-parallel-size": p.pipeline,
        "context-parallel-size": p.context,
        "micro-batch-size": recipe.batch.micro,
        "global-batch-size": recipe.batch.global_,
        "num-virtual-stages-per-pipeline-rank": p.virtual_pipeline if p.virtual_pipeline > 1 else None,
        "sequence-parallel": p.sequence,
        "use-distributed-optimizer": p.distributed_optimizer,
        "num-distributed-optimizer-instances": (
            p.distributed_optimizer_instances if p.distributed_optimizer else None
        ),
        "overlap-grad-reduce": p.overlap_grad_reduce,
        "overlap-param-gather": p.overlap_param_gather,
        "recompute-granularity": None if p.recompute == "none" else p.recompute,
        "recompute-modules": p.recompute_modules,
        "recompute-method": "block" if full else None,
        "recompute-num-layers": (p.recompute_layers or recipe.model.layers // p.pipeline) if full else None,
        "cpu-offloading-num-layers": p.offload_layers or None,
        "tp-comm-overlap": p.overlap_tensor,
        "tp-comm-bootstrap-backend": "nccl" if p.overlap_tensor else None,
        "cuda-graph-impl": "local" if p.cuda_graphs else None,
    }


def _precision(recipe: Recipe) -> Flags:
    precision, optimizer = recipe.precision, recipe.optimizer
    flags: Flags = {}
    if precision.compute == "bf16":
        flags |= {
            "bf16": True,
            "accumulate-allreduce-grads-in-fp32": precision.grad_reduce_fp32,
            "grad-reduce-in-bf16": not precision.grad_reduce_fp32,
        }
    if precision.fp8 is not None:
        # Transformer Engine's own defaults of delayed scaling are one step; Megatron's published runs use
        # these.
        delayed, edge_layers = precision.fp8 == "delayed", precision.first_last_layers_bf16 or None
        flags |= {
            "fp8-format": precision.fp8_format,
            "fp8-recipe": precision.fp8,
            "fp8-amax-history-len": 1024 if delayed else None,
            "fp8-amax-compute-algo": "max" if delayed else None,
            "fp8-param-gather": precision.fp8_params,
            # MXFP8 weights cannot lie in the buffer that is gathered; they are made from it.
            "reuse-grad-buf-for-mxfp8-param-ag": precision.fp8_params and precision.fp8 == "mxfp8",
            "first-last-layers-bf16": edge_layers is not None,
            "num-layers-at-start-in-bf16": edge_layers,
            "num-layers-at-end-in-bf16": edge_layers,
        }
    states = {
        "exp-avg-dtype": optimizer.exp_avg_dtype,
        "exp-avg-sq-dtype": optimizer.exp_avg_sq_dtype,
        "main-params-dtype": optimizer.main_params_dtype,
    }
    if any(state != "fp32" for state in states.values()):
        flags |= {"use-precision-aware-optimizer": True, **states}
    return flags


_STYLES = {"wsd": "WSD", **dict.fromkeys(OWN_CURVES, "constant")}
"""Megatron's names of decay styles, where they differ from the recipe's. In place of the constant rate the session puts the
project's own curves (`session/curve.py`)."""


def _schedule(recipe: Recipe) -> Flags:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    return {
        "train-iters": schedule.steps,
        "lr": schedule.learning_rate,
        "min-lr": schedule.min_learning_rate,
        "lr-warmup-iters": schedule.warmup_steps,
        "lr-warmup-init": schedule.warmup_from or None,
        "lr-decay-style": _STYLES.get(schedule.decay, schedule.decay),
        "lr-decay-iters": schedule.curve_steps,
        "optimizer": "adam",
        "adam-beta1": optimizer.beta1,
        "adam-beta2": optimizer.beta2,
        "adam-eps": optimizer.epsilon,
        "weight-decay": optimizer.weight_decay,
        "clip-grad": optimizer.clip_grad,
        "seed": recipe.seed,
        # Padding and document ends make micro-batches differ in the tokens that count. In any layout, the
        # loss is the mean over the tokens of the whole global batch.
        "calculate-per-token-loss": True,
        # The project's own evaluator runs at the seams of the loop; Megatron's is never called.
        "eval-iters": 0,
        "eval-interval": schedule.steps,
        # The session looks at each step's gradient norm and goes back (session/skips.py); Megatron's own
        # check would end one rank and leave the others waiting. Without clipping there is no norm, and
        # Megatron's check stays.
        "no-check-for-nan-in-loss-and-grad": optimizer.clip_grad > 0,
        "lr-wsd-decay-iters": schedule.wsd_decay_steps,
        "lr-wsd-decay-style": None if schedule.wsd_decay_steps is None else schedule.wsd_decay_style,
    }


def _documents(recipe: Recipe) -> Flags:
    """Documents see only themselves: packed sequences with Transformer Engine, which would silently ignore a
    dense mask; a dense mask without it."""
    masked, dense = recipe.batch.document_masking, recipe.cluster.device == "cpu"
    return {
        "dataloader-type": "single",
        "reset-attention-mask": masked and dense,
        "reset-position-ids": masked and dense,
        "dataloader-inter-document-masking": masked and not dense,
        "no-create-attention-mask-in-dataloader": not (masked and dense),
    }


def _start(load: LoadPlan) -> Flags:
    """A phase loads the optimizer's moments; `session/phase.py` resets step, schedule and learning rate."""
    if load.mode == "scratch":
        return {}
    weights, phase = load.mode == "weights", load.mode == "phase"
    return {
        "load": load.folder,
        # Data-parallel ranks each read a part and send it to the others.
        "ckpt-fully-parallel-load": True,
        "exit-on-missing-checkpoint": True,
        "ckpt-step": load.step,
        "finetune": weights,
        "no-load-optim": weights,
        "no-load-rng": weights or phase,
        "override-opt_param-scheduler": phase,
    }


def _output(recipe: Recipe, checkpoints: Path, tensorboard: Path | None) -> Flags:
    checkpoint, logging = recipe.checkpoint, recipe.logging
    reshardable = checkpoint.reshardable and recipe.parallelism.distributed_optimizer
    wandb = logging.wandb_project is not None
    return {
        "save": checkpoints,
        "save-interval": checkpoint.interval,
        "ckpt-format": "torch_dist",
        "exit-signal-handler": True,
        "log-interval": logging.interval,
        # Two read ahead while the device computes. On a CPU they would take cores from the ranks.
        "num-workers": 0 if recipe.cluster.device == "cpu" else 2,
        "ckpt-fully-parallel-save": reshardable,
        "dist-ckpt-optim-fully-reshardable": reshardable,
        "async-save": checkpoint.asynchronous,
        "async-strategy": "mcore" if checkpoint.asynchronous else None,
        "use-persistent-ckpt-worker": checkpoint.asynchronous,
        "wandb-project": logging.wandb_project,
        "wandb-exp-name": recipe.name if wandb else None,
        "wandb-save-dir": recipe.run_folder / "wandb" if wandb else None,
        "tensorboard-dir": tensorboard,
        "tensorboard-log-interval": None if tensorboard is None else logging.interval,
    }
