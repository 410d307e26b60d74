"""Parameter counts of a model and of one rank's share of it."""

from __future__ import annotations

from dataclasses import dataclass

from emma.recipes.schema.model import Model

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
    """Gate, up and down projections (SwiGLU)."""
    norm: int
    """The two RMSNorms; every tensor-parallel rank holds them whole."""

    @property
    def matmul(self) -> int:
        """Weights of matrix products, which tensor parallelism divides."""
        return self.attention + self.mlp

    @property
    def total(self) -> int:
        """All weights of the layer."""
        return self.matmul + self.norm


def layer_parameters(model: Model) -> LayerParameters:
    """Weights of one layer of a Llama-family model (no biases)."""
    queries = model.attention_heads * model.channels
    keys_and_values = 2 * model.query_groups * model.channels
    return LayerParameters(
        attention=model.hidden_size * (queries + keys_and_values) + queries * model.hidden_size,
        mlp=3 * model.hidden_size * model.ffn_hidden_size,
        norm=2 * model.hidden_size,
    )


def total_parameters(model: Model) -> int:
    """Parameters of the released model, without vocabulary padding."""
    embedding = model.vocab_size * model.hidden_size
    tables = embedding if model.tie_embeddings else 2 * embedding
    return tables + model.layers * layer_parameters(model).total + model.hidden_size


def matmul_parameters(model: Model) -> int:
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
    """All RMSNorms."""

    @property
    def total(self) -> int:
        """All weights of the rank."""
        return self.layers + self.tables + self.norms


def rank_parameters(model: Model, tensor: int, pipeline: int, stage: int) -> RankParameters:
    """Weights of a rank of pipeline stage `stage` (0 to `pipeline` − 1) at tensor-parallel size `tensor`.

    The vocabulary is padded as Megatron pads it. With tied embeddings and several stages, the last stage holds a copy.
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
        norms=layers * layer.norm + (model.hidden_size if last else 0),
    )
