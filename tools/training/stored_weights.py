"""Blocks of a checkpoint's tensors, read by each rank for itself: only what it asks for, one block at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from emma.base.errors import UserError

__all__ = ["Piece", "StoredWeights"]

# Megatron's names for main weights: of the distributed optimizer, and of the one that each rank holds whole.
_MAIN = ("optimizer.state.param.", "optimizer.state.fp32_param.")


@dataclass(frozen=True)
class Piece:
    """A part of a parameter that is one block of one of the checkpoint's tensors.

    Args:
        key: name of the tensor.
        start: first element of the part in the parameter, flat; the part lies there in one run.
        offsets: of the block in the tensor, along each axis.
        sizes: of the block.
        global_size: of the tensor.
        may_differ: whether the tensor in a checkpoint may be shorter or longer (padding of the vocabulary).
    """

    key: str
    start: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    global_size: tuple[int, ...]
    may_differ: bool


class _Into:
    """Puts what the storage reads into one tensor: the two methods of a LoadPlanner that a storage calls."""

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return narrow_tensor_by_index(self._target, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """The storage has written into the target itself."""


class StoredWeights:
    """The weights in a checkpoint of Megatron's `torch_dist` format.

    Args:
        folder: `iter_NNNNNNN`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        """Bytes read so far."""
        self._reader = FileSystemReader(folder)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=False)
        self._tensors: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._storage = metadata.storage_data or {}

    def main_key(self, piece: Piece) -> str | None:
        """The tensor that holds a piece's main weights, beside the model's; None if there is none."""
        return next((prefix + piece.key for prefix in _MAIN if prefix + piece.key in self._tensors), None)

    def in_fp32(self, key: str) -> bool:
        """Whether a tensor is stored in FP32."""
        return key in self._tensors and self._tensors[key].properties.dtype == torch.float32

    def read(self, key: str, piece: Piece, start: int, end: int) -> torch.Tensor:
        """Elements of a piece.

        Args:
            key: name of the tensor: the piece's, or its `main_key`.
            piece: the block.
            start: first element, flat within the block.
            end: the element after the last.

        Returns:
            [n] FP32; n is smaller than end − start where the rest is vocabulary padding that the checkpoint lacks.

        Raises:
            UserError: the checkpoint lacks the tensor or a part of it, or it has another shape.
        """
        stored = self._tensors.get(key)
        if stored is None:
            raise UserError(f"{self.folder} holds no {key}. Fix: import or save the checkpoint again")
        size = tuple(stored.size)
        if len(size) != len(piece.global_size) or (size != piece.global_size and not piece.may_differ):
            raise UserError(f"{self.folder}: {key} has shape {size}, but this model's is {piece.global_size}")
        axis = next((axis for axis, length in enumerate(piece.sizes) if length > 1), len(piece.sizes) - 1)
        width = math.prod(piece.sizes[axis + 1 :])
        there = min(piece.sizes[axis], size[axis] - piece.offsets[axis])
        end = min(end, max(0, there) * width)
        if end <= start:
            return torch.empty(0)
        first, last = start // width, -(-end // width)
        offsets, sizes = list(piece.offsets), list(piece.sizes)
        offsets[axis] += first
        sizes[axis] = last - first
        rows = self._block(key, stored, offsets, sizes).view(-1)
        return rows[start - first * width : end - first * width]

    def _block(
        self, key: str, stored: TensorStorageMetadata, offsets: Sequence[int], sizes: Sequence[int]
    ) -> torch.Tensor:
        """The block at `offsets`, read from all stored chunks that it meets."""
        items, found = [], 0
        for number, chunk in enumerate(stored.chunks):
            begin = [max(*both) for both in zip(offsets, chunk.offsets, strict=True)]
            end = [
                min(a + n, b + m)
                for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
            ]
            lengths = [max(0, stop - start) for start, stop in zip(begin, end, strict=True)]
            if not math.prod(lengths):
                continue
            index = MetadataIndex(key, chunk.offsets, number)
            items.append(
                ReadItem(
                    LoadItemType.TENSOR,
                    MetadataIndex(key, torch.Size(offsets)),
                    _difference(begin, offsets),
                    index,
                    _difference(begin, chunk.offsets),
                    torch.Size(lengths),
                )
            )
            found += math.prod(lengths)
            self.bytes += self._storage[index].length
        if found != math.prod(sizes):
            raise UserError(
                f"{self.folder}: {key} is incomplete: {found} of {math.prod(sizes)} elements at {tuple(offsets)}. "
                "Fix: start from another checkpoint"
            )
        target = torch.empty(tuple(sizes), dtype=torch.float32)
        self._reader.read_data(LoadPlan(items), cast(LoadPlanner, _Into(target))).wait()
        return target


def _difference(a: Sequence[int], b: Sequence[int]) -> torch.Size:
    return torch.Size([x - y for x, y in zip(a, b, strict=True)])
