"""The proof of divided attention: with context parallelism and masked documents, each launch first shows on its own devices
that attention comes to what it comes to on one rank.

Answers `train`, before the first step. All of a layer but attention works token by token, so attention is what can differ:
the cut of the sample, rotary positions, boundaries of documents, the exchange of heads and its way back. One layer of each
kind gets random queries, keys and values of a micro-batch of awkward documents, once as a rank's share and once whole, as it
would without context parallelism (the same modules, kernels and boundaries); outputs and gradients must be equal up to
rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import unwrap_model

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.tools.training.context import Share
from emma.tools.training.forward import Batch, to_device

__all__ = ["DividedAttention", "awkward_documents", "largest_difference"]

BOUNDS = {"fp32": 1e-4, "bf16": 0.02}
"""Largest difference of an output or gradient, as a share of the largest value: BF16 rounds to 0.4 %. A token that sees one
document too many or a wrong position differs by tens of percent where documents are short."""


class DividedAttention:
    """Acts where attention divides its heads over context-parallel ranks."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def train(
        self, original: Callable[..., Any], forward_step: Any, model: Any, *rest: Any, **named: Any
    ) -> Any:
        """Proves, then trains."""
        if self.recipe.parallelism.context > 1 and self.recipe.batch.document_masking:
            self._prove(model)
        return original(forward_step, model, *rest, **named)

    def _prove(self, model: list[torch.nn.Module]) -> None:
        """Stops all ranks where any differs.

        Raises:
            UserError: divided attention is not that of one rank.
        """
        recipe, ranks = self.recipe, self.recipe.parallelism.context
        bound = BOUNDS[recipe.precision.compute]
        batch = awkward_documents(
            recipe.batch.micro, recipe.batch.sequence_length, dense=recipe.cluster.device == "cpu"
        )
        layers = {
            recipe.model.kinds[layer.layer_number - 1]: (layer.self_attention, chunk.rotary_pos_emb)
            for chunk in unwrap_model(model)
            for layer in chunk.decoder.layers
        }
        worst = torch.stack([largest_difference(*layer, batch) for _, layer in sorted(layers.items())]).max()
        # NaN compares as false with everything, so it would pass.
        worst = torch.nan_to_num(worst, nan=torch.inf)
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        if not worst.item() <= bound:
            raise UserError(
                f"parallelism.context: on these devices, attention that {ranks} ranks divide differs from that of one rank by "
                f"{worst.item():.2g} of its largest value; rounding explains {bound:g}. Nothing was trained. Fix: set context "
                "to 1 (tensor 2 with sequence: true saves as much memory), and report this"
            )
        if torch.distributed.get_rank() == 0:
            message = f"step 0: attention over {ranks} context-parallel ranks equals one rank's within {worst.item():.2g}"
            print(message, flush=True)


def awkward_documents(rows: int, length: int, *, dense: bool) -> Batch:
    """A micro-batch as the data loader gives it: documents of one, two, three and more tokens, and one over half of the
    row, wherever that lies to the cuts; the last of several rows is a single document.

    Args:
        rows: samples.
        length: tokens of a sample.
        dense: with a mask over pairs of tokens, in place of boundaries.
    """
    generator = torch.Generator().manual_seed(0)
    position_ids = torch.arange(length).repeat(rows, 1)
    boundaries = torch.full((rows, length + 1), length, dtype=torch.int32)
    longest = torch.zeros(rows, dtype=torch.int32)
    document = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        lengths = [1, 2, 3, 1, length // 2] if row < rows - 1 or rows == 1 else [length]
        while sum(lengths) < length:
            lengths.append(int(torch.randint(1, max(2, length // 8), (), generator=generator)))
        ends = torch.tensor(lengths).cumsum(0).clamp(max=length)
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).unique()
        boundaries[row, : len(begins)] = begins.int()
        longest[row] = (begins[1:] - begins[:-1]).max()
        document[row] = torch.bucketize(torch.arange(length), begins[1:], right=True)
        position_ids[row] -= begins[document[row]]
    batch = {"tokens": torch.zeros(rows, length, dtype=torch.int64), "position_ids": position_ids}
    if dense:
        seen = (document[:, :, None] == document[:, None, :]).tril()
        return {**batch, "attention_mask": ~seen[:, None]}
    return {**batch, "cu_seqlens": boundaries, "max_seqlen": longest}


def largest_difference(attention: Any, rotary: Any, batch: Batch) -> torch.Tensor:
    """Of a layer's divided attention from its undivided one: the largest in an output or a gradient, as a share of the
    largest value. All context-parallel ranks have to call it together.

    Args:
        attention: Megatron's SelfAttention, whose kernel `context.over_heads` divides.
        rotary: the model's `context.RopeAtPositions`.
        batch: as `awkward_documents` gives it.

    Returns:
        A scalar, float32; this rank's tokens only.
    """
    rank, ranks = mpu.get_context_parallel_rank(), mpu.get_context_parallel_world_size()
    own, share = to_device(dict(batch), rank, ranks)
    assert isinstance(share, Share) and share.positions is not None
    whole, documents = to_device(dict(batch))
    rows, length = whole["tokens"].shape
    config, device = attention.config, share.positions.device
    heads = (config.num_attention_heads + 2 * config.num_query_groups) // config.tensor_model_parallel_size
    mixed = torch.randn(
        (length, rows, heads * config.kv_channels),
        generator=torch.Generator(device).manual_seed(0),
        dtype=config.params_dtype,
        device=device,
    )
    longest = rotary.length if documents is None else documents.max_seqlen_q
    angles = rotary.rotary(longest, packed_seq=True)
    expected = _run(_undivided(attention), mixed, angles, whole, documents)
    angles = rotary(share.positions)
    found = _run(_bare(attention), mixed.chunk(ranks)[rank], angles, own, share)
    differences = []
    for divided, one_rank in zip(found, expected, strict=True):
        mine = one_rank.chunk(ranks)[rank]
        differences.append((divided.float() - mine.float()).abs().max() / one_rank.float().abs().max())
    return torch.stack(differences).max()


def _run(
    attention: Any, mixed: torch.Tensor, angles: torch.Tensor, batch: Batch, packed: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of its squares by queries, keys and values."""
    mixed = mixed.detach().requires_grad_()
    with torch.enable_grad():
        output, _ = attention(
            mixed, batch.get("attention_mask"), rotary_pos_emb=angles, packed_seq_params=packed
        )
        (gradient,) = torch.autograd.grad(output.float().square().sum(), mixed)
    return output.detach(), gradient


class _AsGiven(torch.nn.Module):
    """In place of a projection: queries, keys and values are given, and outputs looked at, as they are."""

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, None]:
        return given, None


def _bare(attention: Any, **modules: torch.nn.Module) -> Any:
    """The layer's attention without its projections, with other modules; what else it has is shared."""
    bare = copy.copy(attention)
    given = {"linear_qkv": _AsGiven(), "linear_proj": _AsGiven(), **modules}
    bare.__dict__["_modules"] = {**attention._modules, **given}
    bare.checkpoint_core_attention = False  # Megatron recomputes in backward() alone, not for autograd.grad
    return bare


def _undivided(attention: Any) -> Any:
    """The same as a rank without context parallelism has it."""
    alone = copy.copy(attention.pg_collection)
    alone.cp = torch.distributed.new_group([torch.distributed.get_rank()], use_local_synchronization=True)
    kernel = attention.core_attention.undivided(pg_collection=alone)
    bare = _bare(attention, core_attention=kernel.train(attention.training))
    bare.pg_collection = alone
    return bare
