"""Context parallelism with masked documents: tokens are divided over the ranks everywhere but in attention, heads there.

A micro-batch is cut into as many equal pieces as there are context-parallel ranks, in the order of its tokens and without
regard to documents. All of a layer but its attention works token by token, so a piece is enough. For attention the ranks
exchange pieces (all-to-all): each gets all tokens for its share of the heads, calls the very kernel that a run without
context parallelism calls, with the same document boundaries, and gives each rank back the outputs of its tokens (Ulysses,
arXiv 2309.14509). Nothing is padded, no document has to have a certain length, and each token has the loss that it has on
one rank, up to the rounding of matrix products of another height.

Transformer Engine's own ways would change what is trained on: they cut every document into 2 × ranks equal parts, so
documents would have to be padded to multiples of that. `use_per_sequence_balancing` of megatron-core 0.19.2 cuts the
sample instead, but Transformer Engine's ring still takes the boundaries for those of documents cut each by itself, and
computes other scores without a word.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import all_to_all

__all__ = ["RopeAtPositions", "Share", "divide_heads", "is_masked", "over_heads", "share"]

_OF_TOKENS = ("tokens", "labels", "loss_mask", "position_ids", "document")


@dataclass
class Share(PackedSeqParams):
    """What the layers get to know of a micro-batch of which a rank has some tokens.

    To Megatron it is a plain sequence (`sbhd`): a rank's tokens are no whole documents, of which only attention knows.
    """

    qkv_format: str = "sbhd"
    positions: torch.Tensor | None = None
    """Rotary positions of the rank's tokens, int64 [tokens]: the same as without context parallelism."""
    documents: PackedSeqParams | None = None
    """Boundaries of the documents in the whole micro-batch; None where a dense mask says which token sees which."""


def is_masked(batch: Mapping[str, Any]) -> bool:
    """Whether the dataset has masked the documents of a batch from each other."""
    return batch.get("cu_seqlens") is not None or batch.get("attention_mask") is not None


def share(batch: Mapping[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """The tokens of one context-parallel rank: its piece of each row.

    Args:
        batch: [rows, tokens] tensors of tokens, and others, which stay whole.
        rank: the rank, from 0.
        ranks: number of ranks; divides the tokens.

    Returns:
        The batch, and `positions` of its tokens (int64 [tokens / ranks]).
    """
    length = batch["tokens"].shape[1]
    if length % ranks:
        raise ValueError(f"{length} tokens cannot be divided over {ranks} context-parallel ranks")
    mine = slice(rank * (length // ranks), (rank + 1) * (length // ranks))
    cut = {
        key: value[:, mine].contiguous() if key in _OF_TOKENS and value is not None else value
        for key, value in batch.items()
    }
    # Packed documents are turned from their first token on. With a dense mask, positions are places in the sample.
    packed = batch.get("cu_seqlens") is not None
    cut["positions"] = cut["position_ids"][0] if packed else torch.arange(length)[mine]
    return cut


class RopeAtPositions(torch.nn.Module):
    """Rotary embeddings of the positions that a `Share` names, in place of the first ones.

    Args:
        rotary: Megatron's module, or `network.RopeByKind`.
        length: tokens of a sample: no position is beyond.
    """

    def __init__(self, rotary: Any, length: int) -> None:
        super().__init__()
        self.rotary, self.length = rotary, length

    def get_rotary_seq_len(self, *args: Any) -> torch.Tensor:
        """What Megatron hands to `forward`: of the micro-batch's parameters, which come last, the positions."""
        positions: torch.Tensor = args[-1].positions
        return positions

    def forward(self, positions: torch.Tensor, **_: Any) -> torch.Tensor:
        """Angles, [..., tokens, 1, 1, channels] float32."""
        table: torch.Tensor = self.rotary(self.length, packed_seq=True)
        return table.index_select(-4, positions)


def divide_heads(model: Any, sequence_length: int) -> None:
    """Makes Megatron's loop build a model for `Share`s.

    Args:
        model: the loop's GPTModelConfig, complete but for this.
        sequence_length: tokens of a sample.
    """
    spec = model.transformer_layer_spec

    def divided(config: Any, vp_stage: int | None = None) -> Any:
        layer = spec(config, vp_stage)
        parts = layer.submodules.self_attention.submodules
        parts.core_attention = over_heads(parts.core_attention)
        return layer

    model.transformer_layer_spec = divided
    model.pre_wrap_hooks = [*model.pre_wrap_hooks, partial(_at_positions, length=sequence_length)]


def _at_positions(model: list[torch.nn.Module], length: int) -> list[torch.nn.Module]:
    for chunk in model:
        chunk.rotary_pos_emb = RopeAtPositions(chunk.rotary_pos_emb, length)
    return model


@functools.cache
def over_heads(attention: type) -> type:
    """An attention kernel's module (Transformer Engine's or the local one) over all tokens and a share of the heads.

    A group of keys and values that more than one rank needs goes to each of them. The module's names in checkpoints stay
    those of `attention`.
    """

    class OverHeads(attention):
        def __init__(self, config: Any, *args: Any, pg_collection: Any, **options: Any) -> None:
            ranks, tensor = pg_collection.cp.size(), config.tensor_model_parallel_size
            groups = config.num_query_groups // tensor
            copies = math.lcm(groups, ranks) // groups
            divided = _without_context(config)
            divided.num_attention_heads = config.num_attention_heads // ranks
            divided.num_query_groups = groups * copies // ranks * tensor
            super().__init__(divided, *args, pg_collection=pg_collection, **options)
            self.context, self.copies = pg_collection.cp, copies
            self.undivided = partial(attention, _without_context(config), *args, **options)
            """Builds what a layer has without context parallelism; wants `pg_collection`."""

        def forward(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            *args: Any,
            packed_seq_params: Share,
            **options: Any,
        ) -> torch.Tensor:
            """As `attention`'s: [tokens of the rank, batch, heads, channels] to [tokens of the rank, batch, width]."""
            tokens, ranks, documents = query.shape[0], self.context.size(), packed_seq_params.documents
            heads = [
                self._all_tokens(one)
                for one in (query, *(one.repeat_interleave(self.copies, dim=2) for one in (key, value)))
            ]
            if documents is not None:
                heads = [one.squeeze(1) for one in heads]
            output = super().forward(*heads, attention_mask, *args, packed_seq_params=documents, **options)
            mine = all_to_all(self.context, output.reshape(ranks, tokens, query.shape[1], -1))
            # From each rank, the outputs of its heads for my tokens.
            return mine.movedim(0, 2).flatten(2)

        def _all_tokens(self, mine: torch.Tensor) -> torch.Tensor:
            """From all heads of my tokens to my heads of all tokens."""
            by_rank = mine.unflatten(2, (self.context.size(), -1)).movedim(2, 0)
            return all_to_all(self.context, by_rank).flatten(0, 1)

    return OverHeads


def _without_context(config: Any) -> Any:
    config = copy.copy(config)
    config.context_parallel_size = 1
    return config
