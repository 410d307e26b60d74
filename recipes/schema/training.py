"""The sections that say how a run trains: layout, batch, schedule, optimizer, start, checkpoints, logging."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from emma.base.sharing import parse_umask
from emma.recipes.schema.section import Section

__all__ = [
    "Batch",
    "Checkpoint",
    "OWN_CURVES",
    "Logging",
    "Optimizer",
    "Parallelism",
    "Paths",
    "Safety",
    "Schedule",
    "Start",
    "Train",
    "Validation",
]


class Parallelism(Section):
    """How the model is divided over ranks; the rest of the world size is data parallelism."""

    tensor: int = Field(1, gt=0)
    """Tensor-parallel size."""
    pipeline: int = Field(1, gt=0)
    """Pipeline-parallel size."""
    context: int = Field(1, gt=0)
    """Context-parallel size. With `batch.document_masking`, attention divides its heads over these ranks: tensor × context
    must divide them. Without, keys travel in Transformer Engine's ring (GPU only)."""
    virtual_pipeline: int = Field(1, gt=0)
    """Model chunks per pipeline rank (interleaved schedule); 1 is the plain 1F1B schedule."""
    sequence: bool = False
    """Sequence parallelism: activations outside the tensor-parallel regions are divided along the sequence."""
    distributed_optimizer: bool = True
    """Shard optimizer states over data-parallel ranks (ZeRO-1)."""
    distributed_optimizer_instances: int = Field(1, gt=0)
    """Groups of data-parallel ranks, each of which holds a full set of optimizer states."""
    overlap_grad_reduce: bool = False
    """Overlap gradient reduction with the backward pass."""
    overlap_param_gather: bool = False
    """Overlap the parameter all-gather with the forward pass; needs `distributed_optimizer` and
    `overlap_grad_reduce`."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: none, the attention core, or whole layers."""
    recompute_layers: int | None = Field(None, gt=0)
    """With `recompute: full`: layers per pipeline stage to recompute (method `block`); default: all."""
    recompute_modules: list[Literal["core_attn", "mlp"]] | None = Field(None, min_length=1)
    """With `recompute: selective`: which parts of every layer; default: the attention core."""
    offload_layers: int = Field(0, ge=0)
    """Layers whose activations wait in host memory between forward and backward pass (GPU only, without pipeline and
    recomputation)."""
    overlap_tensor: bool = False
    """Overlap tensor-parallel communication with the products it feeds (GPU only; needs `sequence`)."""
    cuda_graphs: bool = False
    """Replay each layer as a CUDA graph, which spares launches of kernels; documents cannot be masked then, since the
    graph's shapes are fixed (GPU only)."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"recompute_modules", "offload_layers", "overlap_tensor", "cuda_graphs"}
    )


class Batch(Section):
    """Batch sizes."""

    micro: int = Field(gt=0)
    """Sequences that a data-parallel rank processes at once (the micro-batch)."""
    # `global` is a Python keyword, so the attribute carries another name than the key.
    global_: int = Field(gt=0, alias="global")
    """Sequences per optimizer step, over all ranks. Tokens per step: this × `sequence_length`."""
    sequence_length: int = Field(gt=0)
    """Tokens per sequence."""
    document_masking: bool = True
    """Tokens attend to their own document only, and positions restart with each document. If off, they attend to the
    whole sample, including other documents."""


OWN_CURVES = ("cosine_inf", "range_test")
"""Values of `schedule.decay` that are no style of Megatron's."""


class Schedule(Section):
    """Learning rate over steps."""

    steps: int = Field(gt=0)
    """Optimizer steps of the run."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the last step; of a range test, at the first."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up to `learning_rate`."""
    warmup_from: float = Field(0.0, ge=0)
    """Learning rate at which warm-up begins; a phase that re-warms begins where the run before it has ended."""
    decay: Literal["cosine", "linear", "constant", "wsd", "cosine_inf", "range_test"] = "cosine"
    """Shape of the decay. `wsd`: warm-up, stable, decay. `cosine_inf`: half a cosine down to `constant_learning_rate`, which
    then stays for as long as training goes on, and `anneal_steps` at the end. `range_test`: no decay, but an exponential
    rise from `min_learning_rate` to `learning_rate`, to see in the loss which rates a model takes."""
    wsd_decay_steps: int | None = Field(None, gt=0)
    """With `decay: wsd`: length of the final decay, in steps."""
    wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "linear"
    """With `decay: wsd`: shape of the final decay, as Megatron names it."""
    constant_learning_rate: float | None = Field(None, gt=0)
    """With `decay: cosine_inf`: the rate after the cosine."""
    cooldown_steps: int | None = Field(None, gt=0)
    """With `decay: cosine_inf`: length of the cosine, in steps."""
    anneal_steps: int = Field(0, ge=0)
    """With `decay: cosine_inf`: steps at the end in which the rate falls exponentially to `min_learning_rate`; 0: none."""
    offset: int = Field(0, ge=0)
    """Steps that the learning rate is ahead: step 1 has the rate that step 1 + `offset` of a run of `steps` + `offset`
    would have. So a phase goes on along the curve of the run before it."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "warmup_from",
            "wsd_decay_style",
            "constant_learning_rate",
            "cooldown_steps",
            "anneal_steps",
            "offset",
        }
    )

    @property
    def curve_steps(self) -> int:
        """Steps of the whole curve of the learning rate, of which the run takes the last `steps`."""
        return self.offset + self.steps

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) is above learning_rate ({self.learning_rate})"
            )
        if self.warmup_steps >= self.curve_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.curve_steps})")
        if self.warmup_from > self.learning_rate or (self.warmup_from and not self.warmup_steps):
            raise ValueError(
                f"warmup_from ({self.warmup_from}) needs warmup_steps, and a learning_rate ({self.learning_rate}) that is not "
                "below it"
            )
        if (self.decay == "wsd") != (self.wsd_decay_steps is not None):
            raise ValueError("wsd_decay_steps goes with decay: wsd, and only with it")
        if self.wsd_decay_style != "linear" and self.decay != "wsd":
            raise ValueError("wsd_decay_style goes with decay: wsd, and only with it")
        if self.wsd_decay_steps is not None and self.wsd_decay_steps + self.warmup_steps > self.curve_steps:
            raise ValueError(
                f"wsd_decay_steps ({self.wsd_decay_steps}) + warmup_steps ({self.warmup_steps}) exceed steps ({self.curve_steps})"
            )
        return self

    @model_validator(mode="after")
    def _own_curves(self) -> Self:
        steady, cooling, low = self.constant_learning_rate, self.cooldown_steps, self.min_learning_rate
        infinite = self.decay == "cosine_inf"
        if {steady is not None, cooling is not None} != {infinite} or (self.anneal_steps and not infinite):
            raise ValueError(
                "constant_learning_rate and cooldown_steps go with decay: cosine_inf, and it with both of them; anneal_steps "
                "goes with nothing else"
            )
        if steady is not None and cooling is not None:
            if not low <= steady <= self.learning_rate:
                raise ValueError(
                    f"constant_learning_rate ({steady}) must lie between min_learning_rate ({low}) and learning_rate "
                    f"({self.learning_rate})"
                )
            if self.anneal_steps and not low:
                raise ValueError(
                    "anneal_steps need a min_learning_rate above 0: the rate falls exponentially"
                )
            if (used := self.warmup_steps + cooling + self.anneal_steps) > self.curve_steps:
                raise ValueError(
                    f"warmup_steps + cooldown_steps + anneal_steps ({used}) exceed steps ({self.curve_steps})"
                )
        if self.decay == "range_test" and (not low or self.warmup_steps or self.offset):
            raise ValueError(
                "decay: range_test rises exponentially from min_learning_rate, which must be above 0, without warm-up or offset"
            )
        return self


class Optimizer(Section):
    """AdamW."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay."""
    clip_grad: float = Field(1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 turns clipping off."""
    exp_avg_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Storage of the first moment; anything but fp32 needs Transformer Engine (precision-aware optimizer)."""
    exp_avg_sq_dtype: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Storage of the second moment."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """Storage of the main copy of the weights."""


class Train(Section):
    """Which part of the model is trained."""

    only: list[Literal["embeddings"]] = Field(min_length=1, max_length=1)
    """`[embeddings]`: input and output embedding (one matrix where they are tied); all other weights stay as they are,
    and each save proves it. Gradients are clipped by the norm of all of them."""


class Start(Section):
    """What the first step of this run starts from. An interrupted run always continues from its own checkpoints."""

    mode: Literal["weights", "resume", "phase", "scratch"]
    """`weights`: the weights of `checkpoint`, a new optimizer, the schedule from step 0. `resume`: weights, optimizer,
    schedule, random state and data position of `checkpoint`. `phase`: weights and optimizer of `checkpoint`, with
    this recipe's schedule, learning rate and mix from step 0. `scratch`: new weights."""
    checkpoint: str | None = None
    """Folder of a run or of a Megatron checkpoint, such as `emma convert hf-to-megatron` writes; relative paths start
    at the working folder."""
    step: int | None = Field(None, gt=0)
    """Step of `checkpoint` to start from; default: the latest complete one."""

    reference: str | None = None
    """Hugging Face folder of the base model, for `mode: weights`: before the first update, the imported weights must
    have this model's loss on validation samples, or training does not start."""
    reference_samples: int = Field(1, gt=0)
    """Samples to compare per validation group."""
    reference_tolerance: float = Field(0.01, gt=0)
    """Largest difference in nats per token (BF16 rounding stays far below the default)."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.reference is not None and self.mode != "weights":
            raise ValueError(f"reference goes with mode: weights, not {self.mode}")
        if self.mode == "scratch" and self.checkpoint is not None:
            raise ValueError(
                "mode: scratch takes no checkpoint; remove it or choose weights, resume or phase"
            )
        if self.mode != "scratch" and self.checkpoint is None:
            raise ValueError(f"mode: {self.mode} needs a checkpoint to start from")
        return self


class Checkpoint(Section):
    """When checkpoints are written and which are kept."""

    interval: int = Field(gt=0)
    """Steps between checkpoints. The last step is always saved."""
    keep: int | None = Field(None, gt=0)
    """Number of latest checkpoints to keep on disk; default: all."""
    keep_every: int | None = Field(None, gt=0)
    """Checkpoints at multiples of this many steps are never deleted; needs `keep`."""
    asynchronous: bool = False
    """Save in the background."""
    reshardable: bool = True
    """Save optimizer states in the fully reshardable layout, so that a run can resume with another TP×PP×DP."""

    @model_validator(mode="after")
    def _keep(self) -> Self:
        if self.keep_every is not None and self.keep is None:
            raise ValueError("keep_every without keep does nothing: all checkpoints stay; give keep")
        return self


class Safety(Section):
    """What happens when a step goes wrong."""

    rewinds: int = Field(3, ge=0)
    """How often a run may return to its latest checkpoint by itself, to skip the batch of a step whose gradient norm
    was not finite or above `max_grad_norm`, before it stops."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Gradient norm (before clipping) above which a step is a spike and undone; default: only if the norm is not
    finite."""
    skip_steps: list[int] = Field(default_factory=list)
    """Steps whose batch is read but not trained on."""


class Validation(Section):
    """Validation during training: the mean loss of each group of the mix's validation folder."""

    interval: int = Field(1000, gt=0)
    """Steps between validations."""
    samples: int | None = Field(None, gt=0)
    """Most sequences per group; default: all."""
    groups: list[str] | None = None
    """Groups to evaluate; default: all groups of the mix."""
    at_start: bool = True
    """Validate before the first step, too."""
    alert_above: dict[str, float] = Field(default_factory=dict)
    """Early warning of forgetting, by group: if its loss has risen by more than this many bits per byte since the
    run's first validation, `alerts.jsonl`, the log and the report say so."""


class Logging(Section):
    """What is written about the run's progress."""

    interval: int = Field(1, gt=0)
    """Steps between lines of `metrics.jsonl`."""
    tensorboard: bool = True
    """Also write `tensorboard/`."""
    wandb_project: str | None = None
    """Also log to this project on Weights & Biases, with files in `wandb/` of the run folder (extra `wandb`)."""
    wandb_offline: bool = False
    """Keep the files of Weights & Biases on this machine, for nodes without network access; `wandb sync
    RUN/wandb/wandb/offline-run-*` uploads them later."""

    @model_validator(mode="after")
    def _offline(self) -> Self:
        if self.wandb_offline and self.wandb_project is None:
            raise ValueError("wandb_offline does nothing without wandb_project; name one or remove it")
        return self


class Paths(Section):
    """Where stages read and write; relative paths start at the working folder."""

    later: ClassVar[frozenset[str]] = frozenset({"umask"})

    corpus: str = "corpus"
    """Clean text: `<corpus>/<stage>/<kind>/<language or pair>/part-NNNNN.parquet`."""
    store: str = "store"
    """Token store: `<store>/<component>/shard-NNNNN.bin`."""
    mix: str = "mix"
    """Mixes: `<mix>/<name>/`."""
    runs: str = "runs"
    """Run folders: `<runs>/<name>/`."""
    umask: str | None = None
    """What others may not do with the files of this run and its stages, as shells write it, e.g. `027`; default: your
    own, and the group may write where it may write the folder."""

    @field_validator("umask")
    @classmethod
    def _umask(cls, value: str | None) -> str | None:
        if value is not None:
            parse_umask(value)
        return value
