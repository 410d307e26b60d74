"""Samples of given documents, and attention over packed documents in plain torch, for what has no Transformer Engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["PlainAttention", "random_lengths", "sample_of"]


class PlainAttention(torch.nn.Module):
    """Takes what Megatron hands to Transformer Engine's DotProductAttention for packed documents: [tokens, heads,
    channels], and their boundaries. One document and one head at a time."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        *_: Any,
        softmax_scale: float | None = None,
        pg_collection: Any,
        **__: Any,
    ) -> None:
        super().__init__()
        ranks = pg_collection.tp.size()
        assert config.context_parallel_size == 1, "each call sees whole documents"
        self.heads, self.groups = config.num_attention_heads // ranks, config.num_query_groups // ranks
        self.channels, self.scale = config.kv_channels, softmax_scale or config.kv_channels**-0.5

    def forward(
        self, query: Any, key: Any, value: Any, mask: None, *, packed_seq_params: Any, **_: Any
    ) -> torch.Tensor:
        """To [tokens, heads × channels]."""
        assert mask is None and packed_seq_params.qkv_format == "thd"
        tokens = query.shape[0]
        assert query.shape == (tokens, self.heads, self.channels)
        assert key.shape == value.shape == (tokens, self.groups, self.channels)
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        assert bounds == packed_seq_params.cu_seqlens_kv.tolist() and bounds[-1] == tokens
        documents = []
        for begin, end in itertools.pairwise(bounds):
            hidden = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
            heads = []
            for head in range(self.heads):
                group = head // (self.heads // self.groups)
                scores = self.scale * query[begin:end, head] @ key[begin:end, group].T
                heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[begin:end, group])
            documents.append(torch.cat(heads, -1))
        return torch.cat(documents)


def random_lengths(length: int, most: int, seed: int) -> list[int]:
    """Lengths of documents that fill a sample, each of 1 to `most` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while (left := length - sum(lengths)) > 0:
        lengths.append(min(left, int(torch.randint(1, most + 1, (), generator=generator))))
    return lengths


def sample_of(lengths: Sequence[int], tokens: torch.Tensor, *, dense: bool) -> dict[str, torch.Tensor]:
    """What `MixDataset` gives for a sample of documents of these lengths.

    Args:
        lengths: sum to the sample's.
        tokens: int64 [sample's length + 1].
        dense: with a mask over pairs of tokens (True: hidden), in place of boundaries.
    """
    total = len(tokens) - 1
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    assert len(position_ids) == total
    loss_mask = torch.ones(total)
    loss_mask[total - total // 5 :: 2] = 0
    sample = {
        "tokens": tokens[:-1],
        "labels": tokens[1:],
        "loss_mask": loss_mask,
        "position_ids": position_ids,
    }
    if dense:
        blocks = torch.block_diag(*(torch.ones(length, length) for length in lengths))
        return {**sample, "attention_mask": ~blocks.tril().bool()[None]}
    ends = torch.tensor(lengths).cumsum(0)
    boundaries = functional.pad(ends, (1, total - len(lengths)), value=total).int()
    boundaries[0] = 0
    return {**sample, "cu_seqlens": boundaries, "max_seqlen": torch.tensor(max(lengths), dtype=torch.int32)}
