"""Where parameters lie in Megatron's global tensors."""

from __future__ import annotations

import math

import pytest
import torch

from emma.checkpoints_conversion.parameters import (
    EMBEDDING,
    chunks,
    fuse_qkv,
    global_sizes,
    locations,
    parameter_shapes,
    split_qkv,
)
from emma.recipes.schema.model import Shape


def _shape(**changes: object) -> Shape:
    values = {
        "layers": 3,
        "hidden_size": 12,
        "ffn_hidden_size": 20,
        "attention_heads": 6,
        "query_groups": 2,
        "head_dim": 2,
        "vocab_size": 50,
        "max_position_embeddings": 8,
    }
    return Shape.model_validate(values | changes)


def test_fused_rows_are_grouped() -> None:
    shape = _shape()
    query, key, value = (
        torch.arange(rows * 12.0).view(rows, 12) + start for rows, start in ((12, 0), (4, 1000), (4, 2000))
    )
    fused = fuse_qkv(shape, (query, key, value))
    # Group 0: its three query heads (rows 0-5), its key head (rows 0-1), its value head (rows 0-1); then group 1.
    expected = torch.cat([query[:6], key[:2], value[:2], query[6:], key[2:], value[2:]])
    assert torch.equal(fused, expected)
    for part, whole in enumerate((query, key, value)):
        assert torch.equal(split_qkv(shape, fused, part), whole)


def test_the_gate_lies_before_the_up_projection() -> None:
    found = locations(_shape())
    gate, up = (found[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert gate.key == up.key == "decoder.layers.mlp.linear_fc1.weight"
    assert (gate.offsets, up.offsets) == ((1, 0, 0), (1, 20, 0)) and gate.sizes == up.sizes == (1, 20, 12)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_cover_each_tensor_once(groups: int, tied: bool) -> None:
    shape = _shape(query_groups=groups, tie_embeddings=tied)
    covered = {key: torch.zeros(sizes, dtype=torch.int) for key, sizes in global_sizes(shape).items()}
    names: list[str] = []
    for chunk in chunks(shape):
        place = tuple(
            slice(first, first + size) for first, size in zip(chunk.offsets, chunk.sizes, strict=True)
        )
        covered[chunk.key][place] += 1
        names += chunk.names
    assert all(bool((counts == 1).all()) for counts in covered.values())
    assert sorted(names) == sorted(parameter_shapes(shape))


def test_locations_hold_what_parameters_need() -> None:
    shape = _shape()
    sizes = global_sizes(shape)
    for name, place in locations(shape).items():
        wanted = math.prod(parameter_shapes(shape)[name])
        assert math.prod(place.sizes) == wanted or place.part is not None
        assert all(
            f + s <= whole for f, s, whole in zip(place.offsets, place.sizes, sizes[place.key], strict=True)
        )


def test_padding_follows_the_layout() -> None:
    assert global_sizes(_shape())[EMBEDDING] == (128, 12)
    assert global_sizes(_shape(vocab_padding=8), vocabulary_rows=64)[EMBEDDING] == (64, 12)
    assert list(chunks(_shape(vocab_padding=10)))[1].names == ("model.layers.0.input_layernorm.weight",)
