"""A model's parameters under transformers' names, and where each lies in Megatron's global tensors.

The architecture's file (`recipes/architectures/`) says which there are. Megatron stores a weight of all layers as one
tensor whose first axis is the layer. Two of its tensors each combine several of transformers': `linear_qkv` has, for
each query group in turn, the rows of the group's query heads, its key head, and its value head (its bias likewise);
`linear_fc1` has the gate's rows, then the up projection's. Both libraries rotate the first half of a head's channels
against the second half (`rotate_half`), so rows within a head keep their order. With tied embeddings neither side has
an output layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from emma.recipes.schema.model import Shape

__all__ = [
    "EMBEDDING",
    "LAYERS",
    "NORM_KEYS",
    "OUTPUT",
    "Chunk",
    "Location",
    "chunks",
    "fuse_qkv",
    "global_sizes",
    "locations",
    "matrices",
    "name_of",
    "parameter_shapes",
    "split_qkv",
]

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
LAYERS = "decoder.layers."
# The local implementation's name of a norm before a projection → its name in checkpoints, which follow
# Transformer Engine.
NORM_KEYS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_QKV_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Location:
    """Where a parameter lies.

    Args:
        key: Megatron's global tensor.
        offsets: first element along each axis of the global tensor.
        sizes: extent along each axis; for a part of `linear_qkv`, that of the layer's whole fused weight.
        part: 0, 1, or 2 for the query, key, or value part of `linear_qkv`; None if the extent is the
            parameter itself.
    """

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    part: int | None = None


@dataclass(frozen=True)
class Chunk:
    """A block of a global tensor that an import writes in one piece.

    Args:
        key: Megatron's global tensor.
        offsets: first element along each axis.
        sizes: extent along each axis.
        names: the parameters that make it up: one unchanged, three for a fused query, key, and value, none
            for rows of vocabulary padding, which are zero.
    """

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]


def name_of(shape: Shape, key: str) -> str:
    """transformers' name of a parameter outside of the layers, by Megatron's key; with tied embeddings, the output layer's
    is the embedding's."""
    found = {row.key: name for name, row in shape.outside.items()}
    return found[EMBEDDING if key == OUTPUT and shape.tie_embeddings else key]


def matrices(shape: Shape) -> set[str]:
    """Names of the layers' matrices, which Transformer Engine multiplies in FP8 where the run does."""
    inner = [name for name, row in shape.design.layer.items() if row.cut is not None and len(row.sizes) == 2]
    return {f"model.layers.{index}.{name}" for index in range(shape.layers) for name in inner}


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Sizes of each parameter under transformers' names: embedding, layers, the others."""
    outside = {name: shape.sizes(row) for name, row in shape.outside.items()}
    first = name_of(shape, EMBEDDING)
    layer = {name: shape.sizes(row) for name, row in shape.design.layer.items()}
    result = {first: outside[first]}
    for index in range(shape.layers):
        result |= {f"model.layers.{index}.{name}": sizes for name, sizes in layer.items()}
    return result | outside


def global_sizes(shape: Shape, vocabulary_rows: int | None = None) -> dict[str, tuple[int, ...]]:
    """Sizes of each of Megatron's global tensors.

    Args:
        shape: the model.
        vocabulary_rows: rows of the embedding including padding; by default, as for tensor-parallel size 1.
    """
    return shape.checkpoint_tensors(
        shape.padded_vocab_size(1) if vocabulary_rows is None else vocabulary_rows
    )


def locations(shape: Shape) -> dict[str, Location]:
    """Where each parameter lies, under transformers' names in the order of `parameter_shapes`."""
    outside, fused = shape.outside, shape.layer_tensors
    layer: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int | None]] = {}
    for name, row in shape.design.layer.items():
        sizes, part = shape.sizes(row), None
        first = [0] * len(sizes)
        if row.part in _QKV_PARTS:
            sizes, part = fused[row.key], _QKV_PARTS.index(row.part)
        elif row.part == "up":
            first[0] = fused[row.key][0] - sizes[0]
        layer[name] = (LAYERS + row.key, tuple(first), sizes, part)
    result = {}
    for name, whole in parameter_shapes(shape).items():
        if name in outside:
            result[name] = Location(outside[name].key, (0,) * len(whole), whole)
        else:
            _, _, number, inner = name.split(".", 3)
            key, offsets, sizes, part = layer[inner]
            result[name] = Location(key, (int(number), *offsets), (1, *sizes), part)
    return result


def chunks(shape: Shape, vocabulary_rows: int | None = None) -> Iterator[Chunk]:
    """Yields the blocks that make up all global tensors, in network order.

    Args:
        shape: the model.
        vocabulary_rows: rows of the embedding including padding; by default, as for tensor-parallel size 1.
    """
    rows = shape.padded_vocab_size(1) if vocabulary_rows is None else vocabulary_rows
    fused: dict[str, list[str]] = {}
    for name, place in locations(shape).items():
        if place.part is not None:
            names = fused.setdefault(place.key, [])
            names.append(name)
            if len(names) == len(_QKV_PARTS):
                yield Chunk(place.key, place.offsets, place.sizes, tuple(fused.pop(place.key)))
            continue
        yield Chunk(place.key, place.offsets, place.sizes, (name,))
        if place.key in (EMBEDDING, OUTPUT) and rows > shape.vocab_size:
            padding = (rows - shape.vocab_size, shape.hidden_size)
            yield Chunk(place.key, (shape.vocab_size, 0), padding, ())


def fuse_qkv(shape: Shape, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Query [heads × channels, hidden], key, and value [groups × channels, hidden] → Megatron's `linear_qkv`; or their
    biases [heads × channels] and [groups × channels] → its bias.

    Returns:
        A new tensor [(heads + 2 × groups) × channels, hidden] of the parts' type; of biases, without the second axis.
    """
    grouped = [part.view(shape.query_groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def split_qkv(shape: Shape, fused: torch.Tensor, part: int) -> torch.Tensor:
    """The query (0), key (1), or value (2) rows of a layer's `linear_qkv` or its bias, [rows, hidden] or [rows]; a copy."""
    channels = shape.channels
    query = shape.attention_heads // shape.query_groups * channels
    first = (0, query, query + channels)[part]
    size = (query, channels, channels)[part]
    width = math.prod(fused.shape) // (shape.query_groups * (query + 2 * channels))
    grouped = fused.view(shape.query_groups, query + 2 * channels, width)
    rows = grouped[:, first : first + size].reshape(-1, width)
    return rows if width > 1 else rows[:, 0].clone()
