"""A Llama's parameters under transformers' names, and where each lies in Megatron's global tensors.

Megatron stores a weight of all layers as one tensor whose first axis is the layer. Two of its weights each
combine several of transformers': `linear_qkv` has, for each query group in turn, the rows of the group's
query heads, its key head, and its value head; `linear_fc1` has the gate's rows, then the up projection's.
Both libraries rotate the first half of a head's channels against the second half (`rotate_half`), so rows
within a head keep their order. With tied embeddings neither side has an output layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from emma.recipes.schema.model import Shape

__all__ = [
    "EMBEDDING",
    "FUSED_FC1",
    "FUSED_QKV",
    "NORM_KEYS",
    "OUTPUT",
    "Chunk",
    "Location",
    "chunks",
    "fuse_qkv",
    "global_sizes",
    "locations",
    "parameter_shapes",
    "split_qkv",
]

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FUSED_QKV = "decoder.layers.self_attention.linear_qkv.weight"
FUSED_FC1 = "decoder.layers.mlp.linear_fc1.weight"
_FINAL_NORM = "decoder.final_layernorm.weight"

# Within a layer: transformers' name → Megatron's key, for weights that both store the same way.
_ALIKE = {
    "input_layernorm": "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "self_attn.o_proj": "decoder.layers.self_attention.linear_proj.weight",
    "post_attention_layernorm": "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "mlp.down_proj": "decoder.layers.mlp.linear_fc2.weight",
}
# The local implementation's name of a norm before a projection → its name in checkpoints, which follow
# Transformer Engine.
NORM_KEYS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_QKV_PARTS = ("q_proj", "k_proj", "v_proj")
_FC1_PARTS = ("gate_proj", "up_proj")


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


def _layer(index: int, name: str) -> str:
    return f"model.layers.{index}.{name}.weight"


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Sizes of each parameter under transformers' names, in network order."""
    hidden, query, key = (
        shape.hidden_size,
        shape.attention_heads * shape.channels,
        shape.query_groups * shape.channels,
    )
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (shape.ffn_hidden_size, hidden),
        "mlp.up_proj": (shape.ffn_hidden_size, hidden),
        "mlp.down_proj": (hidden, shape.ffn_hidden_size),
    }
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for index in range(shape.layers):
        result |= {_layer(index, name): sizes for name, sizes in layer.items()}
    result["model.norm.weight"] = (hidden,)
    if not shape.tie_embeddings:
        result["lm_head.weight"] = (shape.vocab_size, hidden)
    return result


def _fused_rows(shape: Shape) -> int:
    return (shape.attention_heads + 2 * shape.query_groups) * shape.channels


def global_sizes(shape: Shape, vocabulary_rows: int | None = None) -> dict[str, tuple[int, ...]]:
    """Sizes of each of Megatron's global tensors.

    Args:
        shape: the model.
        vocabulary_rows: rows of the embedding including padding; by default, as for tensor-parallel size 1.
    """
    rows = shape.padded_vocab_size(1) if vocabulary_rows is None else vocabulary_rows
    hidden, ffn, layers = shape.hidden_size, shape.ffn_hidden_size, shape.layers
    sizes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (rows, hidden),
        _ALIKE["input_layernorm"]: (layers, hidden),
        FUSED_QKV: (layers, _fused_rows(shape), hidden),
        _ALIKE["self_attn.o_proj"]: (layers, hidden, shape.attention_heads * shape.channels),
        _ALIKE["post_attention_layernorm"]: (layers, hidden),
        FUSED_FC1: (layers, 2 * ffn, hidden),
        _ALIKE["mlp.down_proj"]: (layers, hidden, ffn),
        _FINAL_NORM: (hidden,),
    }
    if not shape.tie_embeddings:
        sizes[OUTPUT] = (rows, hidden)
    return sizes


def locations(shape: Shape) -> dict[str, Location]:
    """Where each parameter lies, under transformers' names in the order of `parameter_shapes`."""
    result = {}
    fused = (1, _fused_rows(shape), shape.hidden_size)
    for name, sizes in parameter_shapes(shape).items():
        zeros = (0,) * len(sizes)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            result[name] = Location(EMBEDDING if name.startswith("model") else OUTPUT, zeros, sizes)
        elif name == "model.norm.weight":
            result[name] = Location(_FINAL_NORM, zeros, sizes)
        else:
            _, _, number, inner = name.removesuffix(".weight").split(".", 3)
            index, leaf = int(number), inner.rpartition(".")[2]
            if leaf in _QKV_PARTS:
                result[name] = Location(FUSED_QKV, (index, 0, 0), fused, _QKV_PARTS.index(leaf))
            elif leaf in _FC1_PARTS:
                first = _FC1_PARTS.index(leaf) * shape.ffn_hidden_size
                result[name] = Location(FUSED_FC1, (index, first, 0), (1, *sizes))
            else:
                result[name] = Location(_ALIKE[inner], (index, *zeros), (1, *sizes))
    return result


def chunks(shape: Shape, vocabulary_rows: int | None = None) -> Iterator[Chunk]:
    """Yields the blocks that make up all global tensors, in network order.

    Args:
        shape: the model.
        vocabulary_rows: rows of the embedding including padding; by default, as for tensor-parallel size 1.
    """
    rows = shape.padded_vocab_size(1) if vocabulary_rows is None else vocabulary_rows
    fused: list[str] = []
    for name, place in locations(shape).items():
        if place.part is not None:
            fused.append(name)
            if place.part == len(_QKV_PARTS) - 1:
                yield Chunk(place.key, place.offsets, place.sizes, tuple(fused))
                fused = []
            continue
        yield Chunk(place.key, place.offsets, place.sizes, (name,))
        if place.key in (EMBEDDING, OUTPUT) and rows > shape.vocab_size:
            padding = (rows - shape.vocab_size, shape.hidden_size)
            yield Chunk(place.key, (shape.vocab_size, 0), padding, ())


def fuse_qkv(shape: Shape, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Query [heads × channels, hidden], key, and value [groups × channels, hidden] → Megatron's `linear_qkv`.

    Returns:
        A new tensor [(heads + 2 × groups) × channels, hidden] of the parts' type.
    """
    grouped = [part.view(shape.query_groups, -1, shape.hidden_size) for part in parts]
    return torch.cat(grouped, dim=1).view(-1, shape.hidden_size)


def split_qkv(shape: Shape, fused: torch.Tensor, part: int) -> torch.Tensor:
    """The query (0), key (1), or value (2) rows of a layer's `linear_qkv`, [rows, hidden]; a copy."""
    channels = shape.channels
    query = shape.attention_heads // shape.query_groups * channels
    first = (0, query, query + channels)[part]
    size = (query, channels, channels)[part]
    grouped = fused.view(shape.query_groups, query + 2 * channels, shape.hidden_size)
    return grouped[:, first : first + size].reshape(-1, shape.hidden_size)
