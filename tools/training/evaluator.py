"""Validation loss of each group of the mix: the exact mean over its tokens, in any layout.

Megatron's own evaluation takes whole global batches and, with several sets, repeats samples until they fill one. Here
each sample is read once: samples are dealt out to the data-parallel ranks, and an incomplete micro-batch is filled up
with samples whose loss mask is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine
from megatron.core.utils import get_model_config
from torch.utils.data import Dataset, default_collate

from emma.tools.training.forward import LOSS, ForwardStep

__all__ = ["Evaluator"]


class Evaluator:
    """Evaluates groups of samples.

    Args:
        groups: datasets by group name; `dataset[None]` gives a sample that does not count.
        micro_batch: sequences per micro-batch.
        sequence_length: tokens per sequence.
        samples: most sequences per group; None: all.
    """

    def __init__(
        self, groups: Mapping[str, Dataset[Any]], micro_batch: int, sequence_length: int, samples: int | None
    ) -> None:
        self.groups, self.micro_batch, self.sequence_length, self.samples = (
            groups,
            micro_batch,
            sequence_length,
            samples,
        )

    @torch.no_grad()
    def __call__(self, model: list[torch.nn.Module]) -> dict[str, float]:
        """Mean loss of each group in nats per token, equal on all ranks of the last pipeline stage; empty elsewhere.

        Args:
            model: the model chunks of this rank.
        """
        config = get_model_config(model[0])
        timers, config.timers = config.timers, None
        rerun = get_rerun_state_machine()
        mode = rerun.get_mode()
        rerun.set_mode(RerunMode.DISABLED)
        for chunk in model:
            chunk.eval()
        losses = {name: self._group(dataset, model) for name, dataset in self.groups.items()}
        for chunk in model:
            chunk.train()
        rerun.set_mode(mode)
        config.timers = timers
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _group(self, dataset: Dataset[Any], model: list[torch.nn.Module]) -> float | None:
        total = min(len(dataset), self.samples or len(dataset))  # type: ignore[arg-type]
        ranks, micro = mpu.get_data_parallel_world_size(), self.micro_batch
        count = -(-total // (ranks * micro))
        if len(model) > 1:
            # The interleaved schedule needs a multiple of the number of pipeline stages.
            stages = mpu.get_pipeline_model_parallel_world_size()
            count = -(-count // stages) * stages
        mine = range(mpu.get_data_parallel_rank(), total, ranks)
        iterators = [self._batches(dataset, mine, count) for _ in model]
        reports = get_forward_backward_func()(
            forward_step_func=ForwardStep(),
            data_iterator=iterators if len(model) > 1 else iterators[0],
            model=model if len(model) > 1 else model[0],
            num_microbatches=count,
            seq_length=self.sequence_length,
            micro_batch_size=micro,
            decoder_seq_length=None,
            forward_only=True,
        )
        if not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return None
        # Summed in float64: a group may hold millions of tokens.
        summed = torch.stack([report[LOSS].double() for report in reports]).sum(dim=0)
        torch.distributed.all_reduce(summed, group=mpu.get_data_parallel_group(with_context_parallel=True))
        return float(summed[0] / summed[1])

    def _batches(self, dataset: Dataset[Any], mine: range, count: int) -> Iterator[dict[str, torch.Tensor]]:
        for index in range(count):
            chosen = list(mine[index * self.micro_batch : (index + 1) * self.micro_batch])
            samples = [dataset[i] for i in chosen]
            samples += [dataset[None] for _ in range(self.micro_batch - len(chosen))]
            yield default_collate(samples)
