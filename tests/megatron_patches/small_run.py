"""A real run of Megatron's `pretrain` on a small Llama and synthetic tokens, for the ranks of
`tests/ranks.py`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 256

FLAGS = """
--num-layers 4 --hidden-size 64 --num-attention-heads 4 --group-query-attention --num-query-groups 2
--ffn-hidden-size 128 --seq-length 32 --max-position-embeddings 32 --position-embedding-type rope
--rotary-base 500000 --normalization RMSNorm --norm-epsilon 1e-5 --swiglu --disable-bias-linear
--untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
--vocab-size 256 --make-vocab-size-divisible-by 8 --tokenizer-type NullTokenizer
--micro-batch-size 1 --global-batch-size 4 --train-iters 8 --lr 3e-3 --min-lr 1e-4 --lr-decay-style cosine
--lr-decay-iters 20 --lr-warmup-iters 2 --clip-grad 1.0 --adam-beta2 0.95 --weight-decay 0.1
--use-distributed-optimizer --log-interval 1 --eval-interval 1000 --eval-iters 0 --save-interval 1000
--ckpt-format torch_dist --ckpt-fully-parallel-save --dist-ckpt-optim-fully-reshardable
--distributed-backend gloo --use-cpu-initialization --transformer-impl local --attention-backend unfused
--no-persist-layer-norm --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion
--no-rope-fusion --no-gradient-accumulation-fusion --num-workers 0
"""


class Tokens:
    """Sample i is always the same; its tokens are half pattern, half noise, so that there is something to
    learn."""

    def __init__(self, samples: int, length: int) -> None:
        self._samples, self._length = samples, length

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, VOCABULARY, (self._length + 1,), generator=generator)
        tokens[1::2] = (tokens[0::2] * 7 + 3)[: len(tokens[1::2])] % VOCABULARY
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(self._length),
            "position_ids": torch.arange(self._length),
            "attention_mask": torch.ones(1, self._length, self._length).tril() < 0.5,
        }


def provider(samples: list[int | None], vp_stage: int | None = None) -> tuple[Tokens, ...]:
    """Megatron's dataset provider: every rank reads for itself."""
    from megatron.training import get_args

    return tuple(Tokens(count or 1, get_args().seq_length) for count in samples)


provider.is_distributed = True  # type: ignore[attr-defined]


def _loss(mask: Any, output: Any) -> tuple[Any, Any, dict[str, Any]]:
    import torch

    mask = mask.view(-1).float()
    total = (output.view(-1).float() * mask).sum()
    return total, mask.sum().to(torch.int), {"lm loss": torch.stack([total.detach(), mask.sum()])}


def forward_step(iterator: Any, model: Any) -> tuple[Any, Any]:
    """Megatron's forward step."""
    batch = next(iterator)
    output = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
    return output, functools.partial(_loss, batch["loss_mask"])


def train(*flags: str) -> list[tuple[int, float]]:
    """Runs `pretrain` with FLAGS and `flags`; returns (step, loss) per step, empty except on the last
    pipeline stage."""
    from megatron.core.enums import ModelType
    from megatron.training import pretrain, training
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    losses: list[tuple[int, float]] = []
    log = training.training_log

    def keep(loss_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "lm loss" in loss_dict:
            losses.append((len(losses) + training.get_args().iteration + 1, loss_dict["lm loss"].item()))
        return log(loss_dict, *args, **kwargs)

    training.training_log = keep
    sys.argv = ["pretrain", *FLAGS.split(), *flags]
    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)
    return losses


def apply_without(*names: str) -> None:
    """Installs the patches that this machine needs, except the named ones."""
    from emma.megatron_patches.machine import Machine
    from emma.megatron_patches.registry import patches

    machine = Machine.from_torch()
    unknown = set(names) - {patch.name for patch in patches()}
    if unknown:
        raise ValueError(f"no such patch: {unknown}")
    for patch in patches():
        if patch.name not in names and patch.condition(machine).on:
            patch.install()


def train_without(name: str, *flags: str) -> list[tuple[int, float]]:
    """Runs `train` with all patches but one; start it with patched=False."""
    apply_without(name)
    return train(*flags)


def at_step(folder: Path, step: int) -> str:
    """Makes `step` the latest checkpoint of the folder for Megatron's loader; returns the folder."""
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return str(folder)


def furthest(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> float:
    """Returns the greatest difference between the losses of the same steps; the steps must be the same."""
    if not ours or [step for step, _ in ours] != [step for step, _ in theirs]:
        raise ValueError(f"not the same steps: {ours} and {theirs}")
    return max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
