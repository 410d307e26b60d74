"""Megatron's own loop, without this project's dataset, forward step, wrappers and logs, for benchmarks to compare with.

It has the same flags, `pretrain`, the stock `GPTDataset` over the same mix, and the shortest forward step that masks
documents as the flags say. Run as `python -m benchmarks.megatron_loop JOB.json` by torchrun, it is one rank.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.files import read_json, write_json

__all__ = ["Course", "timed", "train_megatron", "train_ours"]


@dataclass
class Course:
    """Records of a run's steps; only ranks of the last pipeline stage have `losses`."""

    starts: list[float] = field(default_factory=list)
    """Time at the start of each step, in s."""
    processor: list[float] = field(default_factory=list)
    """Processor time of the rank's threads at the start of each step, in s."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step, in nats per token."""
    memory_gib: float = 0.0
    """Peak memory of the rank's tensors, in GiB."""

    def seconds_per_step(self, warm: int) -> float:
        """Median time between the starts of steps, leaving out the first `warm`."""
        return _median_gap(self.starts[warm:])

    def processor_seconds_per_step(self, warm: int) -> float:
        """The same in processor time, which other programs on the machine barely affect."""
        return _median_gap(self.processor[warm:])


def _median_gap(times: Sequence[float]) -> float:
    return statistics.median(after - before for before, after in itertools.pairwise(times))


def timed() -> Course:
    """Wraps Megatron's step so that the returned course fills during training."""
    import torch
    from megatron.training import training

    course, step = Course(), training.train_step

    def marked(*args: Any, **named: Any) -> Any:
        course.starts.append(time.perf_counter())
        course.processor.append(time.process_time())
        result = step(*args, **named)
        for value in result[0].values():
            # Reading the value waits for the step, as Megatron's log does right after.
            course.losses.append(float(torch.as_tensor(value).reshape(-1)[0]))
        return result

    training.train_step = marked
    return course


def train_ours(folder: str) -> Course:
    """Trains one rank of this project's trainer from a prepared run folder, timed at the same place."""
    from emma.tools.training.worker import train

    course = timed()
    train(Path(folder))
    return course


def train_megatron(flags: Sequence[str], prefix: str) -> Course:
    """Trains one rank from flags.

    Args:
        flags: arguments of `megatron.training`.
        prefix: path of the training data's `.bin` and `.idx`, without the ending.
    """
    import torch
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    course = timed()
    sys.argv = ["pretrain", *flags]
    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    provider = functools.partial(_datasets, prefix)
    provider.is_distributed = True  # type: ignore[attr-defined]
    pretrain(config, provider, ModelType.encoder_or_decoder, _forward_step)
    course.memory_gib = torch.cuda.max_memory_allocated() / 2**30
    return course


def _datasets(prefix: str, samples: list[int], vp_stage: int | None = None) -> tuple[Any, None, None]:
    import numpy
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.training import get_args, get_tokenizer

    args = get_args()
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=([prefix], None),
        split="1,0,0",
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=False,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        inter_document_masking=args.dataloader_inter_document_masking,
    )
    documents = GPTDataset.build_low_level_dataset(prefix, config)
    indices = numpy.arange(GPTDataset.numel_low_level_dataset(documents), dtype=numpy.int32)
    return GPTDataset(documents, prefix, indices, samples[0], Split.train, config), None, None


def _loss(mask: Any, output: Any) -> tuple[Any, Any, dict[str, Any]]:
    import torch

    losses, weights = output.view(-1).float(), mask.view(-1).float()
    total, count = torch.sum(losses * weights), weights.sum()
    return total, count.to(torch.int), {"lm loss": torch.stack([total.detach(), count])}


def _forward_step(iterator: Any, model: Any) -> Any:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.utils import flatten_batch_for_packed_sequences

    batch = {
        name: value.cuda(non_blocking=True) for name, value in next(iterator).items() if value is not None
    }
    packed = None
    if "cu_seqlens" in batch:
        batch = flatten_batch_for_packed_sequences(batch)
        bounds, longest = batch["cu_seqlens"][0], int(batch["max_seqlen"].item())
        packed = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch.get("attention_mask"),
        labels=batch["labels"],
        packed_seq_params=packed,
    )
    return output, functools.partial(_loss, batch["loss_mask"])


def main(arguments: list[str]) -> None:
    """Trains as the job file says (`flags`, `prefix`) and writes the course of the last rank to its `out`."""
    from emma import megatron_patches

    # What 0.19.2 needs to run at all from its wheel; where there is no GPU, the CPU backend too.
    megatron_patches.apply()
    import torch

    job = read_json(Path(arguments[0]))
    course = train_megatron(job["flags"], job["prefix"])
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        write_json(Path(job["out"]), asdict(course))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
