"""Reads Megatron's `torch_dist` checkpoints without Megatron, process group, or model: slices of global
tensors as views of memory-mapped files.

A checkpoint is a folder of `.distcp` files and a pickled `.metadata` that says where in them each block of
each global tensor lies. Each block was written by `torch.save` as an uncompressed zip archive, so its data
can be used in place.
"""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.checkpoints_conversion.mapped_file import MappedFile
from emma.checkpoints_conversion.slicing import covered, overlaps
from emma.tools.inspection.archives import Archive, Window
from emma.tools.inspection.objects import read_metadata
from emma.tools.inspection.tensors import tensor_form
from emma.tools.inspection.trees import PickleError

__all__ = ["TorchDistReader"]

# Each mapping holds a file descriptor, and large runs write more files than a process may open.
_OPEN_FILES = 64


@dataclass(frozen=True)
class _Stored:
    """Data of one block: the file, the byte range in it, and how to view it."""

    file: str
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int


class TorchDistReader:
    """The global tensors of one checkpoint folder.

    Args:
        folder: holds `.metadata` and `metadata.json`.

    Raises:
        UserError: not a `torch_dist` checkpoint, or some of its files are missing, damaged, or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ".metadata").is_file() or not (folder / "metadata.json").is_file():
            raise UserError(
                f"{folder}: .metadata or metadata.json is missing, so it is not a complete torch_dist checkpoint; "
                "name a folder that Megatron wrote with --ckpt-format torch_dist"
            )
        backend = read_json(folder / "metadata.json").get("sharded_backend")
        if backend != "torch_dist":
            raise UserError(f"{folder}: its format is {backend!r}; only torch_dist and torch can be read")
        try:
            metadata: Metadata = read_metadata((folder / ".metadata").read_bytes())
        except PickleError as error:
            raise UserError(
                f"{folder / '.metadata'}: cannot be read ({error}); nothing of it was executed; copy it again"
            ) from None
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._storage: dict[MetadataIndex, Any] = metadata.storage_data
        self._stored: dict[MetadataIndex, _Stored] = {}
        self._files: OrderedDict[str, MappedFile] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def keys(self) -> set[str]:
        """Names of the global tensors."""
        return set(self._tensors)

    @property
    def files(self) -> list[Path]:
        """The `.distcp` files to which the metadata refers."""
        return [
            self.folder / name for name in sorted({info.relative_path for info in self._storage.values()})
        ]

    def size(self, key: str) -> tuple[int, ...]:
        """Sizes of a global tensor."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Type of a global tensor."""
        dtype: torch.dtype = self._tensors[key].properties.dtype
        return dtype

    @contextmanager
    def open(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """Lends a slice of a global tensor: a view of the file if one block holds it, otherwise a new tensor.

        Args:
            key: the global tensor.
            offsets: first element along each axis.
            sizes: extent along each axis.

        Raises:
            UserError: blocks of the slice are missing from the checkpoint, or their file is truncated.
        """
        chunks = self._tensors[key].chunks
        parts = overlaps(((chunk.offsets, chunk.sizes) for chunk in chunks), offsets, sizes)
        if (found := covered(parts)) != math.prod(sizes):
            raise UserError(
                f"{self.folder}: only {found} of the {math.prod(sizes)} values of {key} at {list(offsets)} are stored; "
                "the checkpoint is incomplete; use another step"
            )
        stored = [self._stored_block(MetadataIndex(key, chunks[part.block].offsets)) for part in parts]
        try:
            if len(parts) == 1:
                yield self._part(stored[0], parts[0].inside)
                return
            whole = torch.empty(tuple(sizes), dtype=self.dtype(key))
            for part, block in zip(parts, stored, strict=True):
                whole[part.wanted] = self._part(block, part.inside)
            yield whole
        finally:
            for block in stored:
                self._map(block.file).release(block.offset, block.size)

    def _map(self, name: str) -> MappedFile:
        with self._lock:
            if name not in self._files:
                self._files[name] = MappedFile(self.folder / name)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)  # unmapped together with the last tensor that views it
            self._files.move_to_end(name)
            return self._files[name]

    def stream(self, key: str) -> io.BufferedReader | None:
        """The bytes of a stored object, such as Megatron's common state; None if there is none."""
        info = self._storage.get(MetadataIndex(key))
        return None if info is None else self._stream(info)

    def _stream(self, info: Any) -> io.BufferedReader:
        if getattr(info, "transform_descriptors", None):
            raise UserError(f"{self.folder}: written with stream transforms, which this version cannot undo")
        mapped = self._map(info.relative_path)
        if info.offset + info.length > len(mapped):
            raise UserError(
                f"{mapped.path}: {len(mapped)} bytes, but the metadata refers to byte {info.offset + info.length}; "
                "the file is truncated: copy it again, or use another step"
            )
        return io.BufferedReader(Window(mapped.read, info.offset, info.length))

    def _stored_block(self, index: MetadataIndex) -> _Stored:
        if index not in self._stored:
            self._stored[index] = self._locate(index)
        return self._stored[index]

    def _part(self, block: _Stored, inside: tuple[slice, ...]) -> torch.Tensor:
        """A part of a block: a view of the file, or a copy if its elements are not aligned to their size, as
        in files that Megatron writes (archives follow each other without gaps)."""
        width = block.dtype.itemsize
        mapped = self._map(block.file)
        if block.offset % width == 0:
            flat = mapped.tensor(block.offset, block.dtype, (block.size // width,))
            return flat.as_strided(block.shape, block.stride, block.storage_offset)[inside]
        flat = mapped.tensor(block.offset, torch.uint8, (block.size,))
        numbers = flat.as_strided(
            (*block.shape, width), (*(step * width for step in block.stride), 1), block.storage_offset * width
        )
        return numbers[inside].clone(memory_format=torch.contiguous_format).view(block.dtype).squeeze(-1)

    def _locate(self, index: MetadataIndex) -> _Stored:
        """Finds a block's data in the zip archive that torch wrote."""
        info = self._storage.get(index)
        if info is None:
            raise UserError(f"{self.folder}: .metadata does not say where {index.fqn} {index.offset} lies")
        stream = self._stream(info)
        try:
            archive = Archive(stream)
            form = tensor_form(archive.tree)
            if form is None:
                raise PickleError("it holds something else than a tensor")
            start, size = archive.span(form.storage)
            form.check(size)
        except PickleError as error:
            raise UserError(
                f"{self.folder / info.relative_path}: damaged where {index.fqn} {index.offset} lies ({error}); "
                "copy it again, or use another step"
            ) from None
        dtype: torch.dtype = getattr(torch, form.dtype)
        return _Stored(
            info.relative_path, info.offset + start, size, dtype, form.sizes, form.strides, form.offset
        )
