"""Megatron's own memory formula, for comparison: the figure that its users quote."""

from __future__ import annotations

from emma.recipes.schema import Recipe
from emma.tools.arithmetic.parameters import total_parameters
from emma.tools.plan.memory import GIB

__all__ = ["megatron_formula_gib"]


def megatron_formula_gib(recipe: Recipe) -> float:
    """GiB by Megatron's `theoretical_memory_usage`, without pipeline parallelism and recomputation.

    Bytes per parameter: 6 with FP32 gradients (4 with BF16), plus 12 divided by the ranks that share optimizer states.
    Activations: table 2 of Korthikanti et al. 2022 (arXiv 2205.05198), 18 + 4 f/h bytes for each of tokens × hidden ×
    layers, and 4 bytes for each of hidden and vocabulary at the output. The formula ignores allocator and CUDA context
    and counts the activations of a GELU network with dropout, so it stays 10 to 20 GiB below what cards report.
    """
    model, batch, p = recipe.model, recipe.batch, recipe.parallelism
    gradients = 4 if recipe.precision.grad_reduce_fp32 else 2
    shards = recipe.data_parallel * p.context
    state = total_parameters(model) / p.tensor * (2 + gradients + 12 / shards)
    tokens = batch.micro * batch.sequence_length / (p.context * p.tensor)
    layers = model.layers * model.hidden_size * (18 + 4 * model.ffn_hidden_size / model.hidden_size)
    output = 4 * (model.hidden_size + model.padded_vocab_size(p.tensor))
    return (state + tokens * (layers + output)) / GIB
