"""What context-parallel ranks exchange where documents are masked: heads for tokens before attention, and back after it."""

from __future__ import annotations

import math

from emma.recipes.schema import Recipe

__all__ = ["divides_heads", "exchanged_bytes", "key_copies"]


def divides_heads(recipe: Recipe) -> bool:
    """Whether attention divides its heads over context-parallel ranks (`tools/training/context.py`)."""
    return recipe.parallelism.context > 1 and recipe.batch.document_masking


def key_copies(recipe: Recipe) -> int:
    """To how many ranks each group of keys and values goes: one, unless a tensor-parallel rank's groups are not a multiple
    of the context-parallel ranks."""
    p = recipe.parallelism
    groups = recipe.model.query_groups // p.tensor
    return math.lcm(groups, p.context) // groups


def exchanged_bytes(recipe: Recipe) -> float:
    """Bytes that the ranks of one token send for it in a forward pass, all layers and tensor-parallel ranks together:
    queries, keys and values, and outputs, less the share that stays. A backward pass sends as much."""
    model, ranks = recipe.model, recipe.parallelism.context
    unit = 4 if recipe.precision.compute == "fp32" else 2
    heads = 2 * model.attention_heads + 2 * model.query_groups * key_copies(recipe)
    return model.layers * heads * model.channels * unit * (1 - 1 / ranks)
