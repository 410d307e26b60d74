"""Reading parts of a checkpoint's tensors: any block, over any cut into chunks."""

from __future__ import annotations

import itertools
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.torch_dist_writer import Block, write_torch_dist
from emma.tools.training.stored_weights import Piece, StoredWeights


def blocks(key: str, whole: torch.Tensor, cuts: list[list[int]]) -> list[Block]:
    """The tensor cut at the given places along each axis."""
    edges = [[0, *places, size] for places, size in zip(cuts, whole.shape, strict=True)]
    found = [()]
    for axis in edges:
        found = [(*box, pair) for box in found for pair in itertools.pairwise(axis)]
    return [
        Block(
            key,
            tuple(whole.shape),
            tuple(begin for begin, _ in box),
            tuple(end - begin for begin, end in box),
            whole.dtype,
            lambda box=box: nullcontext(whole[tuple(slice(*pair) for pair in box)].clone()),
        )
        for box in found
    ]


def stored(folder: Path, *parts: list[Block]) -> StoredWeights:
    folder.mkdir()
    write_torch_dist(folder, [block for part in parts for block in part], {}, file_bytes=3000)
    return StoredWeights(folder)


def piece(
    key: str, whole: torch.Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...], **named: object
) -> Piece:
    settings = {"global_size": tuple(whole.shape), "may_differ": False, **named}
    return Piece(key, 0, offsets, sizes, **settings)  # type: ignore[arg-type]


def test_any_part_of_any_block_over_any_cut(tmp_path: Path) -> None:
    generator = random.Random(0)
    whole = torch.randn(3, 14, 10).bfloat16()
    norm = torch.randn(3, 10)
    weights = stored(tmp_path / "c", blocks("w", whole, [[1], [3, 4, 11], [5]]), blocks("n", norm, [[2], []]))
    for _ in range(200):
        layer, row, column = generator.randrange(3), generator.randrange(14), generator.randrange(10)
        sizes = (1, generator.randint(1, 14 - row), generator.randint(1, 10 - column))
        part = whole[layer : layer + 1, row : row + sizes[1], column : column + sizes[2]].flatten()
        start = generator.randrange(part.numel())
        end = generator.randint(start + 1, part.numel())
        found = weights.read("w", piece("w", whole, (layer, row, column), sizes), start, end)
        assert found.dtype == torch.float32 and torch.equal(found, part[start:end].float())
    found = weights.read("n", piece("n", norm, (1, 0), (1, 10)), 3, 8)
    assert torch.equal(found, norm[1, 3:8])


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    whole = torch.randn(64, 100)
    weights = stored(tmp_path / "c", blocks("w", whole, [list(range(8, 64, 8)), []]))
    weights.read("w", piece("w", whole, (0, 0), (64, 100)), 16 * 100, 32 * 100)
    # Two of eight chunks, each with the kilobyte that its archive adds.
    assert 2 * 8 * 100 * 4 < weights.bytes < 3 * 8 * 100 * 4


def test_padding_of_the_vocabulary_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    whole = torch.randn(20, 4)
    weights = stored(tmp_path / "c", blocks("w", whole, [[7], []]))
    longer = {"global_size": (24, 4), "may_differ": True}
    last = piece("w", whole, (12, 0), (12, 4), **longer)
    assert torch.equal(weights.read("w", last, 0, 48), whole[12:].flatten())
    assert torch.equal(weights.read("w", last, 30, 48), whole[12:].flatten()[30:])
    assert weights.read("w", last, 33, 48).numel() == 0
    with pytest.raises(UserError, match=r"w has shape \(20, 4\), but this model's is \(24, 4\)"):
        weights.read("w", piece("w", whole, (12, 0), (12, 4), global_size=(24, 4)), 0, 48)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    whole = torch.randn(20, 4)
    weights = stored(tmp_path / "c", blocks("w", whole, [[7, 9], []])[::2])
    with pytest.raises(UserError, match=r"w is incomplete: 72 of 80 elements at \(0, 0\)"):
        weights.read("w", piece("w", whole, (0, 0), (20, 4)), 0, 80)
    with pytest.raises(UserError, match="holds no v"):
        weights.read("v", piece("v", whole, (0, 0), (20, 4)), 0, 80)


def test_main_weights_are_found_by_either_name(tmp_path: Path) -> None:
    whole = torch.randn(4, 4)
    names = (
        "a",
        "optimizer.state.param.a",
        "b",
        "optimizer.state.fp32_param.b",
        "c",
        "optimizer.state.exp_avg.c",
    )
    weights = stored(tmp_path / "c", *(blocks(name, whole, [[], []]) for name in names))
    found = {key: weights.main_key(piece(key, whole, (0, 0), (4, 4))) for key in "abc"}
    assert found == {"a": "optimizer.state.param.a", "b": "optimizer.state.fp32_param.b", "c": None}
    assert weights.in_fp32("a") and not weights.in_fp32("d")
