"""Functions that the ranks of the conversion tests run: Megatron's own loader, forward pass, and short
training runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from emma.recipes.schema.model import Shape

COMMON = """
--seq-length 64 --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
--attention-dropout 0 --hidden-dropout 0 --tokenizer-type NullTokenizer --micro-batch-size 1 --global-batch-size 4
--lr 1e-3 --min-lr 1e-3 --train-iters 2 --lr-decay-iters 100 --clip-grad 1.0 --weight-decay 0.1 --log-interval 1
--eval-interval 1000 --eval-iters 0 --save-interval 1000 --ckpt-format torch_dist --ckpt-fully-parallel-save
--use-distributed-optimizer --distributed-backend gloo
--use-cpu-initialization --transformer-impl local --attention-backend unfused --no-persist-layer-norm
--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion --no-rope-fusion
--no-gradient-accumulation-fusion --num-workers 0 --finetune --no-load-optim --no-load-rng
--exit-on-missing-checkpoint
"""


def shape_flags(shape: Shape) -> list[str]:
    """Megatron's arguments for a shape."""
    values = {
        "--num-layers": shape.layers,
        "--hidden-size": shape.hidden_size,
        "--ffn-hidden-size": shape.ffn_hidden_size,
        "--num-attention-heads": shape.attention_heads,
        "--num-query-groups": shape.query_groups,
        "--kv-channels": shape.channels,
        "--vocab-size": shape.vocab_size,
        "--make-vocab-size-divisible-by": shape.vocab_padding,
        "--max-position-embeddings": shape.max_position_embeddings,
        "--rotary-base": int(shape.rope_theta),
        "--norm-epsilon": shape.norm_epsilon,
    }
    flags = [str(part) for pair in values.items() for part in pair] + ["--group-query-attention"]
    if not shape.tie_embeddings:
        flags.append("--untie-embeddings-and-output-weights")
    if shape.rope_scaling is not None:
        flags.append("--use-rope-scaling")
    return flags


# What a machine without a GPU needs to run the model at all; nothing that describes it.
MACHINE = """
--tokenizer-type NullTokenizer --micro-batch-size 1 --global-batch-size 4 --lr 1e-3 --train-iters 2
--distributed-backend gloo --use-cpu-initialization --transformer-impl local --attention-backend unfused
--no-persist-layer-norm --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion --no-rope-fusion
--no-gradient-accumulation-fusion --num-workers 0 --dist-ckpt-strictness raise_unexpected
"""


def _configure(shape: Shape, flags: tuple[str, ...]) -> Any:
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    from emma.megatron_patches.rope_scaling import RopeScaling, set_rope_scaling

    sys.argv = ["test", *COMMON.split(), *shape_flags(shape), *flags]
    args = parse_and_validate_args()
    model_config = gpt_config_from_args(args)
    if shape.rope_scaling is not None:
        set_rope_scaling(model_config, RopeScaling(**shape.rope_scaling.model_dump()))
    return pretrain_cfg_container_from_args(args, model_config)


def _loaded(shape: Shape, checkpoint: Path, flags: tuple[str, ...]) -> list[Any]:
    """Chunks of a model on this rank, loaded with Megatron's `load_checkpoint` in its strictest mode."""
    return _load(
        _configure(shape, ("--load", str(checkpoint), "--dist-ckpt-strictness", "raise_unexpected", *flags))
    )


def _load(config: Any) -> list[Any]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import initialize
    from megatron.training.checkpointing import load_checkpoint

    initialize.initialize_megatron(allow_no_cuda=True)
    builder = config.model.get_builder_cls()(config.model)
    model: list[Any] = builder.build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    for chunk in model:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))  # shows whatever the loader misses
    load_checkpoint(model, None, None, strict=True)
    return model


def save_asynchronously(shape: Shape, checkpoint: Path, save: Path, *flags: str) -> None:
    """Loads a checkpoint and saves it as step 1 through Megatron's asynchronous writer.

    Its arguments are refused on a CPU, where its persistent worker asks CUDA for devices; the forking writer
    works.
    """
    from megatron.training import get_args
    from megatron.training.async_utils import maybe_finalize_async_save
    from megatron.training.checkpointing import save_checkpoint

    model = _loaded(shape, checkpoint, flags)
    args = get_args()
    args.save, args.async_save, args.async_strategy = str(save), True, "mcore"
    args.no_save_optim = args.no_save_rng = True
    save_checkpoint(1, model, None, None, 0)
    maybe_finalize_async_save(blocking=True, terminate=True)


def logits(shape: Shape, checkpoint: Path, tokens: list[list[int]], *flags: str) -> Any:
    """The logits of a checkpoint.

    Returns:
        Logits [sequences, length, vocab_size] as a numpy array on the last pipeline stage, None on the others.
    """
    return _logits(_loaded(shape, checkpoint, flags), shape.vocab_size, tokens)


def stock_logits(arguments: list[str], checkpoint: Path, tokens: list[list[int]], vocab_size: int) -> Any:
    """`logits` of Megatron as it is published, but for what lets it run without a GPU; run it with `patched=False`."""
    from emma import megatron_patches
    from emma.megatron_patches import registry

    registry.MODULES = ("cpu_backend", "initialize_without_cuda", "dataset_helpers")
    assert len(megatron_patches.apply()) == 3
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    sys.argv = ["test", *MACHINE.split(), "--load", str(checkpoint), *arguments]
    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    return _logits(_load(config), vocab_size, tokens)


def _logits(model: list[Any], vocab_size: int, tokens: list[list[int]]) -> Any:
    import torch
    from megatron.core import tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    ids = torch.tensor(tokens)
    count, length = ids.shape
    mask = torch.ones(1, 1, length, length).tril() < 0.5

    def step(iterator: Any, chunk: Any) -> tuple[Any, Any]:
        chunk.eval()
        output = chunk(next(iterator), torch.arange(length)[None], mask)
        return output, lambda tensor, non_loss_data: tensor

    sequences = [iter(ids[:, None]) for _ in model]
    with torch.no_grad():
        collected = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=sequences if len(model) > 1 else sequences[0],
            model=model,
            num_microbatches=count,
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    if not collected:
        return None
    whole = tensor_parallel.gather_from_tensor_model_parallel_region(torch.cat(collected))
    return whole[..., :vocab_size].float().numpy()


def train(shape: Shape, start: Path | None, save: Path, *flags: str) -> None:
    """Two steps of Megatron's `pretrain` on the synthetic tokens of the patches' tests, from an imported
    checkpoint or from scratch."""
    from megatron.core.enums import ModelType
    from megatron.training import pretrain

    from tests.megatron_patches.small_run import forward_step, provider

    load = () if start is None else ("--load", str(start))
    config = _configure(shape, (*load, "--save", str(save), *flags))
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)


def train_with_plain_optimizer(shape: Shape, start: Path | None, save: Path, *flags: str) -> None:
    """`train` with each data-parallel rank holding all optimizer states."""
    global COMMON
    COMMON = COMMON.replace("--use-distributed-optimizer", "").replace("--ckpt-fully-parallel-save", "")
    train(shape, start, save, *(flag for flag in flags if flag != "--dist-ckpt-optim-fully-reshardable"))


def compare(pairs: list[tuple[Path, Path]], **options: Any) -> list[dict[str, Any]]:
    """Parity reports of pairs of folders, as plain values; computed in a rank, since Megatron on a CPU
    patches torch."""
    from emma.checkpoints_conversion import parity

    return [parity.compare(a, b, **options).as_dict() for a, b in pairs]


def command(*lines: list[str]) -> list[tuple[int, str, str]]:
    """Runs lines of `emma` in this process; returns each line's exit code, standard output, and error
    message."""
    from click.testing import CliRunner

    from emma.base.errors import UserError
    from emma.cli import cli

    results = []
    for line in lines:
        result = CliRunner().invoke(cli, line)
        fault = result.exception
        code = fault.exit_code if isinstance(fault, UserError) else result.exit_code
        if fault is not None and not isinstance(fault, UserError | SystemExit):
            raise fault
        results.append((code, result.stdout, str(fault or "")))
    return results
