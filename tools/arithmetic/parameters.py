"""Parameter counts of a model and of one rank's share of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emma.recipes.schema.model import Shape

__all__ = [
    "LayerParameters",
    "RankParameters",
    "layer_parameters",
    "matmul_parameters",
    "rank_parameters",
    "total_parameters",
]


@dataclass(frozen=True)
class LayerParameters:
    """Weights of one transformer layer, by part."""

    attention: int
    """QKV and output projections."""
    mlp: int
    """Gate (if there is one), up and down projections."""
    bias: int
    """Biases, which tensor parallelism divides with their projections."""
    norm: int
    """Norms and the activation's own weights; every tensor-parallel rank holds them whole."""

    @property
    def matmul(self) -> int:
        """Weights of matrix products, which tensor parallelism divides."""
        return self.attention + self.mlp

    @property
    def total(self) -> int:
        """All weights of the layer."""
        return self.matmul + self.bias + self.norm


def layer_parameters(model: Shape) -> LayerParameters:
    """Weights of one layer, summed over the architecture's file."""
    counts = dict.fromkeys(("attention", "mlp", "bias", "norm"), 0)
    for row in model.design.layer.values():
        if row.cut is None:
            part = "norm"
        elif len(row.sizes) < 2:
            part = "bias"
        else:
            part = "mlp" if row.key.startswith("mlp.") else "attention"
        # What has no sizes is a constant, no weight.
        counts[part] += math.prod(model.sizes(row)) if row.sizes else 0
    return LayerParameters(**counts)


def total_parameters(model: Shape) -> int:
    """Parameters of the released model, without vocabulary padding."""
    outside = sum(math.prod(model.sizes(row)) for row in model.outside.values())
    return outside + model.layers * layer_parameters(model).total


def matmul_parameters(model: Shape) -> int:
    """Weights that each token is multiplied by: all layers and the output layer."""
    return model.layers * layer_parameters(model).matmul + model.vocab_size * model.hidden_size


@dataclass(frozen=True)
class RankParameters:
    """Weights that one rank of a pipeline stage holds."""

    layers: int
    """Weights of matrix products in the stage's layers."""
    tables: int
    """Rows of the input embedding and of the output layer."""
    norms: int
    """Norms, and what else each tensor-parallel rank holds whole."""
    biases: int = 0
    """Biases of the stage's layers."""

    @property
    def total(self) -> int:
        """All weights of the rank."""
        return self.layers + self.tables + self.norms + self.biases


def rank_parameters(model: Shape, tensor: int, pipeline: int, stage: int) -> RankParameters:
    """Weights of a rank of pipeline stage `stage` (0 to `pipeline` − 1) at tensor-parallel size `tensor`.

    The vocabulary is padded as Megatron pads it. With tied embeddings and several stages, the last stage
    holds a copy.
    """
    layer = layer_parameters(model)
    layers = model.layers // pipeline
    table = model.padded_vocab_size(tensor) * model.hidden_size // tensor
    first, last = stage == 0, stage == pipeline - 1
    tables = first + last
    if model.tie_embeddings and pipeline == 1:
        tables = 1
    return RankParameters(
        layers=layers * layer.matmul // tensor,
        tables=tables * table,
        biases=layers * layer.bias // tensor,
        norms=layers * layer.norm + (model.hidden_size if last else 0),
    )
