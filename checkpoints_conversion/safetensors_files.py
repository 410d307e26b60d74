"""Reads and writes the safetensors files of a Hugging Face folder without holding them in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.manifest import FileRecord
from emma.base.page_cache import forget
from emma.checkpoints_conversion.config import read_settings
from emma.checkpoints_conversion.dtypes import SAFETENSORS_NAMES
from emma.checkpoints_conversion.mapped_file import MappedFile
from emma.checkpoints_conversion.parallel import Advance, run_jobs
from emma.checkpoints_conversion.safetensors_header import LENGTH, TensorRecord, read_header

__all__ = [
    "INDEX_NAME",
    "SINGLE_NAME",
    "OutgoingTensor",
    "SafetensorsReader",
    "TensorRecord",
    "tensor_bytes",
    "write_shards",
]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_NAMES = {dtype: name for name, dtype in SAFETENSORS_NAMES.items()}


def _shard_names(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """File names of a folder's weights and, if it has an index, tensor → file."""
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = read_settings(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: has no `weight_map`; copy the file again")
        for tensor, name in weight_map.items():
            if not tensor.isprintable():
                raise UserError(f"{index}: {tensor[:50]!r} is no name of a parameter; copy the file again")
            # Other folders are not this model's, and whoever checks this folder would not see them.
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or not name.isprintable():
                raise UserError(
                    f"{index}: tensor {tensor[:200]!r} is in {str(name)[:200]!r}, which is not the name of a file beside "
                    "the index; copy the file again"
                )
        names = sorted(set(weight_map.values()))
        if SINGLE_NAME not in names and (folder / SINGLE_NAME).is_file():
            raise UserError(
                f"{folder}: has both {SINGLE_NAME} and {INDEX_NAME} with other files, and programs differ in which of "
                "them they read; remove the one that is not the model"
            )
        return names, weight_map
    if (folder / SINGLE_NAME).is_file():
        return [SINGLE_NAME], None
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder}: contains pytorch_model.bin files, which can run code when read; "
            "convert them to safetensors first (transformers: save_pretrained)"
        )
    raise UserError(
        f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} in it; is it a Hugging Face model folder?"
    )


class SafetensorsReader:
    """All tensors of a Hugging Face folder, memory-mapped.

    Args:
        folder: holds `model.safetensors`, or shards and their index.

    Raises:
        UserError: a shard or a tensor is missing, truncated, or damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names, weight_map = _shard_names(folder)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder / INDEX_NAME}: names {len(names)} files, of which {len(missing)} are missing "
                f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); copy them too"
            )
        self._files = {name: MappedFile(folder / name) for name in names}
        self.records: dict[str, TensorRecord] = {}
        for name, mapped in self._files.items():
            for tensor, record in read_header(mapped).items():
                if weight_map is not None and weight_map.get(tensor) != name:
                    where = f"in {weight_map[tensor]}" if tensor in weight_map else "nowhere"
                    raise UserError(
                        f"{folder / INDEX_NAME}: tensor {tensor} is in {name}, but according to the index {where}; index "
                        "and shards are from different models"
                    )
                self.records[tensor] = record
        if weight_map and (lost := sorted(weight_map.keys() - self.records.keys())):
            raise UserError(
                f"{folder / INDEX_NAME}: tensor {lost[0]} should be in {weight_map[lost[0]]} but is not "
                f"({len(lost)} such tensors); index and shards are from different models"
            )

    @property
    def files(self) -> list[Path]:
        """The files with weights."""
        return [self.folder / name for name in self._files]

    @contextmanager
    def open(self, name: str, rows: tuple[int, int] | None = None) -> Iterator[torch.Tensor]:
        """Lends a view of a tensor and releases its pages afterwards; don't use the view after that.

        Args:
            name: the tensor.
            rows: first row and number of rows; by default, all.
        """
        record = self.records[name]
        mapped, offset, size = self._place(name, rows)
        shape = (rows[1], *record.shape[1:]) if rows else record.shape
        try:
            yield mapped.tensor(offset, record.dtype, shape)
        finally:
            mapped.release(offset, size)

    def forget(self, name: str, rows: tuple[int, int] | None = None) -> None:
        """Drops a tensor, or some of its rows, from the kernel's cache of files; for those who won't read them again."""
        mapped, offset, size = self._place(name, rows)
        mapped.forget(offset, size)

    def _place(self, name: str, rows: tuple[int, int] | None) -> tuple[MappedFile, int, int]:
        """A tensor's file, or that of some of its rows, their first byte, and how many."""
        record = self.records[name]
        row = math.prod(record.shape[1:]) * record.dtype.itemsize
        first, count = rows or (0, record.shape[0] if record.shape else 1)
        return self._files[record.file], record.offset + first * row, count * row


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written.

    Args:
        name: its name in the file.
        dtype: its type in the file.
        shape: its sizes.
        blocks: yields its elements in order, as contiguous tensors of that type; called at write time.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[torch.Tensor]]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(tensors: Sequence[OutgoingTensor], shard_bytes: int) -> list[list[OutgoingTensor]]:
    """Groups the tensors, in order, into files of at most `shard_bytes` (or one larger tensor)."""
    shards: list[list[OutgoingTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _write_shard(path: Path, tensors: Sequence[OutgoingTensor], advance: Advance) -> FileRecord:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers expect the first tensor at a multiple of eight bytes
    digest = hashlib.sha256()
    with path.open("wb") as handle, ThreadPoolExecutor(1) as beside:
        for part in (LENGTH.pack(len(text)), text):
            digest.update(part)
            handle.write(part)
        for tensor in tensors:
            for block in tensor.blocks():
                content = tensor_bytes(block)
                hashed = beside.submit(digest.update, content)
                try:
                    handle.write(content)
                finally:
                    hashed.result()  # the next block takes this one's memory back
                forget(handle.fileno())  # the disk works beside, the next block takes its pages
                advance(len(content))
            if handle.tell() != LENGTH.size + len(text) + header[tensor.name]["data_offsets"][1]:
                raise RuntimeError(f"{tensor.name}: its blocks do not make up {tensor.shape}")
        handle.flush()
        os.fsync(handle.fileno())
    return FileRecord(path.name, path.stat().st_size, f"sha256:{digest.hexdigest()}")


def write_shards(
    folder: Path,
    tensors: Sequence[OutgoingTensor],
    shard_bytes: int,
    *,
    threads: int = 2,
    advance: Advance = lambda size: None,
) -> list[FileRecord]:
    """Writes tensors as `model.safetensors`, or as numbered shards with an index.

    Args:
        folder: where the files go; it must exist.
        tensors: the tensors, in order.
        shard_bytes: maximum size of the tensors in one file.
        threads: files written at once.
        advance: called with the number of bytes after each block, one call at a time.

    Returns:
        A record of each file, with its SHA-256 computed while writing.
    """
    shards = _plan(tensors, shard_bytes)
    count = len(shards)
    names = (
        [SINGLE_NAME]
        if count == 1
        else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    records = run_jobs(
        [
            functools.partial(_write_shard, folder / name, shard)
            for name, shard in zip(names, shards, strict=True)
        ],
        threads,
        advance,
    )
    if count > 1:
        weight_map = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        total = sum(tensor.size for tensor in tensors)
        write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
        records.append(FileRecord.of(folder / INDEX_NAME, folder))
    return records
