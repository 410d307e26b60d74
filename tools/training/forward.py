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

from emma.base.errors import UserError
from emma.tools.training.context import Share, is_masked, share

__all__ = ["LOSS", "ForwardStep", "loss_by_document", "loss_sum", "to_device"]

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
        Sum of the losses (scalar, float32), number of tokens that count (scalar, int32), and both as the
        report `{LOSS: [sum, count]}`.
    """
    mask = loss_mask.reshape(-1).float()
    total = torch.sum(output.reshape(-1).float() * mask)
    count = mask.sum()
    report = torch.stack([total.detach(), count])
    return total, count.to(torch.int), {LOSS: report}


def loss_by_document(
    loss_mask: torch.Tensor, output: torch.Tensor, *, document: torch.Tensor, sums: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Like `loss_sum`; also adds the losses of each document to its sum.

    Args:
        loss_mask: [batch, sequence] float, 1 where the label counts.
        output: [batch, sequence] float, cross entropy in nats.
        document: [batch, sequence] int64, document of the input token.
        sums: float64 [documents], changed in place.
    """
    losses = output.reshape(-1).double() * loss_mask.reshape(-1).double()
    sums.index_add_(0, document.reshape(-1), losses)
    return loss_sum(loss_mask, output)


class ForwardStep:
    """Callable for Megatron's schedules; remembers how long it waited for data.

    Every rank reads its own batches (the dataset provider is distributed), so nothing is broadcast over
    tensor-parallel ranks, and middle pipeline stages know the document boundaries too.

    Args:
        sums: float64 [documents], to which the losses of each document are added; batches then tell the document of each
            token (`document`). None: they need not.
    """

    def __init__(self, sums: torch.Tensor | None = None) -> None:
        self.data_wait_seconds = 0.0
        self.sums = sums

    def __call__(
        self, data_iterator: Iterator[Batch], model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        begun = time.perf_counter()
        batch = _next(data_iterator)
        self.data_wait_seconds += time.perf_counter() - begun
        ranks = mpu.get_context_parallel_world_size()
        if ranks > 1 and is_masked(batch):
            batch, packed = to_device(batch, mpu.get_context_parallel_rank(), ranks)
        else:
            batch, packed = to_device(batch)
            if ranks > 1:
                batch = get_batch_on_this_cp_rank(
                    {"cu_seqlens": None, **batch},
                    is_hybrid_cp=False,
                    cp_group=mpu.get_context_parallel_group(),
                )
        output = model(
            batch["tokens"],
            batch["position_ids"],
            batch.get("attention_mask"),
            labels=batch["labels"],
            packed_seq_params=packed,
        )
        if self.sums is None:
            return output, partial(loss_sum, batch["loss_mask"])
        return output, partial(
            loss_by_document, batch["loss_mask"], document=batch["document"], sums=self.sums
        )


def _next(data_iterator: Iterator[Batch]) -> Batch:
    """The next micro-batch; torch puts a trace before the message of an error in a worker process, this takes it off."""
    try:
        return next(data_iterator)
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None


def to_device(batch: Batch, rank: int = 0, ranks: int = 1) -> tuple[Batch, PackedSeqParams | None]:
    """The micro-batch on the device; as one packed sequence of documents, if the dataset gave their boundaries.

    Documents are flattened and counted before the copy: afterwards, each number that Python asks for would wait for
    the device.

    Args:
        batch: tensors in host memory, as the data loader gives them. [batch, sequence] each; cu_seqlens
            [batch, most documents + 1] int32, max_seqlen [batch] int32.
        rank: which share of a batch whose documents are masked to take (`context.py`).
        ranks: number of shares.

    Returns:
        The tensors without cu_seqlens and max_seqlen, [1, batch × sequence / ranks] each (without boundaries,
        [batch, sequence / ranks]), and the boundaries.
    """
    boundaries, longest = batch.get("cu_seqlens") is not None, 0
    if boundaries:
        batch = flatten_batch_for_packed_sequences(batch)
        if batch.get("document") is not None:
            batch["document"] = batch["document"].reshape(1, -1)
        longest = int(batch.pop("max_seqlen").item())
    if ranks > 1:
        batch = share(batch, rank, ranks)
    batch, packed = _copied(batch), None
    if boundaries:
        begins = batch.pop("cu_seqlens")[0]
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=begins,
            cu_seqlens_kv=begins,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
    if ranks > 1:
        packed = Share(positions=batch.pop("positions"), documents=packed)
    return batch, packed


def _copied(batch: Batch) -> Batch:
    """The tensors on the device. From pinned memory the copy runs beside the host."""
    if torch.cuda.is_available():
        batch = {key: None if value is None else value.pin_memory() for key, value in batch.items()}
    return {key: value.cuda(non_blocking=True) for key, value in batch.items() if value is not None}
