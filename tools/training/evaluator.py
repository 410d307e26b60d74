"""Validation loss of each group of the mix: the exact mean over its tokens, in any layout.

Megatron's own evaluation takes whole global batches and, with several sets, repeats samples until they fill
one. Here each sample is read once: samples are dealt out to the data-parallel ranks, and an incomplete
micro-batch is filled up with samples whose loss mask is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
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
        by_document: groups whose losses are kept by document too, for `documents`.

    Attributes:
        documents: of the last evaluation, the sum of the losses of each document in nats, by group (float64, one entry a
            document of which any token was scored); on all ranks of the last pipeline stage, empty elsewhere.
    """

    def __init__(
        self,
        groups: Mapping[str, Dataset[Any]],
        micro_batch: int,
        sequence_length: int,
        samples: int | None,
        by_document: Collection[str] = (),
    ) -> None:
        self.groups, self.micro_batch, self.sequence_length = groups, micro_batch, sequence_length
        self.samples, self.by_document = samples, by_document
        self.documents: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def __call__(self, model: list[torch.nn.Module]) -> dict[str, float]:
        """Mean loss of each group in nats per token, equal on all ranks of the last pipeline stage; empty
        elsewhere.

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
        self.documents = {}
        losses = {name: self._group(name, dataset, model) for name, dataset in self.groups.items()}
        for chunk in model:
            chunk.train()
        rerun.set_mode(mode)
        config.timers = timers
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _group(self, name: str, dataset: Dataset[Any], model: list[torch.nn.Module]) -> float | None:
        total = min(len(dataset), self.samples or len(dataset))  # type: ignore[arg-type]
        ranks, micro = mpu.get_data_parallel_world_size(), self.micro_batch
        count = -(-total // (ranks * micro))
        if len(model) > 1:
            # The interleaved schedule needs a multiple of the number of pipeline stages.
            stages = mpu.get_pipeline_model_parallel_world_size()
            count = -(-count // stages) * stages
        mine = range(mpu.get_data_parallel_rank(), total, ranks)
        sums = None
        if name in self.by_document:
            documents = int(dataset.documents_of(total - 1).max()) + 1  # type: ignore[attr-defined]
            sums = torch.zeros(documents, dtype=torch.float64, device="cuda")
        iterators = [self._batches(dataset, mine, count, sums is not None) for _ in model]
        reports = get_forward_backward_func()(
            forward_step_func=ForwardStep(sums),
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
        ranks_of_stage = mpu.get_data_parallel_group(with_context_parallel=True)
        torch.distributed.all_reduce(summed, group=ranks_of_stage)
        if sums is not None:
            torch.distributed.all_reduce(sums, group=ranks_of_stage)
            self.documents[name] = sums.cpu().numpy()
        return float(summed[0] / summed[1])

    def _batches(
        self, dataset: Dataset[Any], mine: range, count: int, by_document: bool
    ) -> Iterator[dict[str, torch.Tensor]]:
        for index in range(count):
            chosen = list(mine[index * self.micro_batch : (index + 1) * self.micro_batch])
            samples = [dataset[i] for i in chosen]
            samples += [dataset[None] for _ in range(self.micro_batch - len(chosen))]
            batch = default_collate(samples)
            if by_document:
                known = [dataset.documents_of(i) for i in chosen]  # type: ignore[attr-defined]
                fillers = [torch.zeros(self.sequence_length, dtype=torch.int64)] * (len(samples) - len(known))
                batch["document"] = torch.stack([*known, *fillers])
            yield batch
