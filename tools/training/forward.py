"""The forward step: one micro-batch through the model, and its loss as a sum over tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import flatten_batch_for_packed_sequences, get_batch_on_this_cp_rank

__all__ = ["LOSS", "ForwardStep", "loss_sum"]

Batch = dict[str, Any]

LOSS = "lm loss"
"""Megatron's name of the loss, in logs and TensorBoard."""


def loss_sum(
    loss_mask: torch.Tensor, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of a micro-batch in the form that `--calculate-per-token-loss` expects.

    Args:
        loss_mask: [batch, sequence] float, 1 where the label counts.
        output: [batch, sequence] float, cross entropy in nats.

    Returns:
        Sum of the losses (scalar, float32), number of tokens that count (scalar, int32), and both as the report
        `{LOSS: [sum, count]}`.
    """
    mask = loss_mask.reshape(-1).float()
    total = torch.sum(output.reshape(-1).float() * mask)
    count = mask.sum()
    report = torch.stack([total.detach(), count])
    return total, count.to(torch.int), {LOSS: report}


class ForwardStep:
    """Callable for Megatron's schedules; remembers how long it waited for data.

    Every rank reads its own batches (the dataset provider is distributed), so nothing is broadcast over tensor-parallel
    ranks, and middle pipeline stages know the document boundaries too.
    """

    def __init__(self) -> None:
        self.data_wait_seconds = 0.0

    def __call__(
        self, data_iterator: Iterator[Batch], model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        begun = time.perf_counter()
        batch = next(data_iterator)
        self.data_wait_seconds += time.perf_counter() - begun
        batch = {key: value.cuda(non_blocking=True) for key, value in batch.items() if value is not None}
        batch, packed = _packed(batch)
        if mpu.get_context_parallel_world_size() > 1:
            batch = get_batch_on_this_cp_rank(
                {"cu_seqlens": None, **batch}, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group()
            )
        output = model(
            batch["tokens"],
            batch["position_ids"],
            batch.get("attention_mask"),
            labels=batch["labels"],
            packed_seq_params=packed,
        )
        return output, partial(loss_sum, batch["loss_mask"])


def _packed(batch: Batch) -> tuple[Batch, PackedSeqParams | None]:
    """The micro-batch as one packed sequence of documents, if the dataset gave document boundaries."""
    if batch.get("cu_seqlens") is None:
        return batch, None
    flat = flatten_batch_for_packed_sequences(batch)
    boundaries, longest = flat.pop("cu_seqlens")[0], int(flat.pop("max_seqlen").item())
    return flat, PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
