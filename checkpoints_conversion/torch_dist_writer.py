"""Writes Megatron's `torch_dist` format with `torch.distributed.checkpoint`, without process group or model.

The planner announces blocks of global tensors and creates each only when the storage asks for it, so only one
block per thread is in memory. The storage writes several files at once and hashes them while writing.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from emma.base.manifest import FileRecord
from emma.base.system_errors import named
from emma.checkpoints_conversion.parallel import Advance, run_jobs

__all__ = ["Block", "write_torch_dist"]

_ALIGNMENT = 64  # bytes; also the alignment of the data within torch's archives


@dataclass(frozen=True)
class Block:
    """A block of a global tensor.

    Args:
        key: name of the global tensor.
        global_size: sizes of the global tensor.
        offsets: first element of the block along each axis.
        sizes: extent along each axis.
        dtype: type of the elements.
        open: lends the data, contiguous, with sizes `sizes` and type `dtype`; called at write time.
    """

    key: str
    global_size: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    open: Callable[[], AbstractContextManager[torch.Tensor]]

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, torch.Size(self.offsets))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


class _LazyPlanner(SavePlanner):
    """Plans blocks that do not exist yet."""

    def __init__(self, blocks: Sequence[Block], objects: Mapping[str, bytes]) -> None:
        self.blocks = {block.index: block for block in blocks}
        self.objects = dict(objects)

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """The state dict is empty: the blocks define everything."""

    def create_local_plan(self) -> SavePlan:
        items = [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self.objects]
        items += [
            WriteItem(
                block.index,
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(torch.Size(block.offsets), torch.Size(block.sizes)),
                    TensorProperties(dtype=block.dtype),
                    torch.Size(block.global_size),
                ),
            )
            for block in self.blocks.values()
        ]
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Resolves objects only; the storage opens blocks itself, so that it can close them after writing."""
        return io.BytesIO(self.objects[write_item.index.fqn])


class _HashingStream(io.RawIOBase):
    """A file that is hashed as it is written."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._handle, self._path = path.open("wb"), path
        self._digest = hashlib.sha256()
        self._advance = advance
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._digest.update(data)
        with named(self._path):
            self._handle.write(data)
        self._position += size
        self._advance(size)
        return size

    def close(self) -> None:
        if not self._handle.closed:
            with named(self._path):
                self._handle.flush()
                os.fsync(self._handle.fileno())
                self._handle.close()
        super().close()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _HashingWriter(dcp.FileSystemWriter):
    """Torch's file system storage with files of bounded size, parallel writes, raised errors, kept hashes."""

    def __init__(self, folder: Path, file_bytes: int, threads: int, advance: Advance) -> None:
        super().__init__(folder)
        self._folder, self._file_bytes, self._threads, self._advance = folder, file_bytes, threads, advance
        self.records: list[FileRecord] = []

    def storage_meta(self) -> StorageMeta:
        """Without the temporary folder and the random id that torch writes: one model gives the same bytes each time."""
        return StorageMeta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if not isinstance(planner, _LazyPlanner):
            raise TypeError(
                f"this storage writes only the blocks of a lazy planner, not of {type(planner).__name__}"
            )
        groups: list[list[WriteItem]] = [[]]
        filled = 0
        for item in plan.items:
            size = planner.blocks[item.index].size if item.index in planner.blocks else 0
            if groups[-1] and filled + size > self._file_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(item)
            filled += size
        jobs = [
            functools.partial(self._write_file, f"__0_{number}.distcp", group, planner)
            for number, group in enumerate(groups)
        ]
        written = run_jobs(jobs, self._threads, self._advance)
        self.records = [record for record, _ in written]
        future: Future[list[WriteResult]] = Future()
        future.set_result([result for _, results in written for result in results])
        return future

    def _write_file(
        self, name: str, items: Sequence[WriteItem], planner: _LazyPlanner, advance: Advance
    ) -> tuple[FileRecord, list[WriteResult]]:
        results = []
        with _HashingStream(self._folder / name, advance) as stream:
            for item in items:
                # Readers can use data in place only if it is aligned to the size of its elements.
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                start = stream.tell()
                if block := planner.blocks.get(item.index):
                    with block.open() as tensor:
                        torch.save(tensor, cast(IO[bytes], stream))
                else:
                    data = planner.resolve_data(item)
                    if isinstance(data, io.BytesIO):
                        stream.write(data.getbuffer())
                length = stream.tell() - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
        size = (self._folder / name).stat().st_size
        return FileRecord(name, size, f"sha256:{stream.hexdigest()}"), results


def write_torch_dist(
    folder: Path,
    blocks: Sequence[Block],
    objects: Mapping[str, Any],
    *,
    file_bytes: int = 4 << 30,
    threads: int = 2,
    advance: Advance = lambda size: None,
) -> list[FileRecord]:
    """Writes a checkpoint folder: `.distcp` files and `.metadata`.

    Args:
        folder: an empty folder.
        blocks: blocks that make up the global tensors without gaps or overlaps.
        objects: unique key of a Megatron sharded object → its value.
        file_bytes: size at which a new `.distcp` file starts; also the unit of parallel writing.
        threads: files written at once.
        advance: called with the bytes written, one call at a time.

    Returns:
        A record of each `.distcp` file, with its SHA-256 computed while writing.
    """
    packed = {}
    for key, value in objects.items():
        buffer = io.BytesIO()
        torch.save([value], buffer)  # a list with one element per local shard, as Megatron packs them
        packed[key] = buffer.getvalue()
    writer = _HashingWriter(folder, file_bytes, threads, advance)
    with warnings.catch_warnings():
        # `no_dist` already states that this is a single process.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        try:
            dcp.save({}, storage_writer=writer, planner=_LazyPlanner(blocks, packed), no_dist=True)
        except CheckpointException as wrapped:
            # Torch gathers the failures of all ranks; the only one here says what is wrong by itself.
            failure, _ = wrapped.failures[0]
            # Closing its archive, torch hides the error that kept it from writing.
            hidden = failure.__context__
            raise (hidden if isinstance(hidden, OSError) else failure) from None
    return writer.records
