"""A rank reads from a checkpoint the bytes that it needs, once.

torch's reader loads a stored block whole for each part that is asked of it, so a rank at another parallel layout
reads several times what it needs; and Megatron reads the checkpoint's table of contents anew for each part of a
load. Here each part is read from where it lies in its block, and the table once per process.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emma.megatron_patches.patch import Decision, Patch, Target
from emma.tools.inspection.archives import Archive, Window
from emma.tools.inspection.tensors import tensor_form

__all__ = ["PATCH", "box_to_read"]

READER = Target(
    "megatron.core.dist_checkpointing.strategies.torch:_get_filesystem_reader",
    "checkpoint_dir cache_metadata async_strategy",
)
# The same function under its name in the module that loads the common state.
COMMON = Target(
    "megatron.core.dist_checkpointing.serialization:_get_filesystem_reader",
    "checkpoint_dir cache_metadata async_strategy",
)

# Shorter runs are read with what lies between them. A quarter of a row of an 8B model's attention output has 2 KiB;
# tensor-parallel ranks are on one node, whose page cache reads each page once for all of them.
_SHORTEST_RUN = 512

# Table of contents of the last checkpoint read, by its path and what changes when it is written anew.
_contents: dict[tuple[str, int, int], Any] = {}


def box_to_read(
    sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], itemsize: int
) -> tuple[int, list[int], list[int]]:
    """What to read of a stored block so that each contiguous run has 512 bytes at least, where it can.

    Args:
        sizes: extents of the block.
        offsets: first element wanted along each axis.
        lengths: elements wanted along each axis.
        itemsize: bytes of an element.

    Returns:
        The axis whose runs are read, and offsets and lengths of the box: those wanted up to that axis, whole
        extents behind it.
    """
    axis = len(sizes) - 1
    while axis > 0 and lengths[axis] == sizes[axis]:
        axis -= 1
    while axis > 0 and lengths[axis] * math.prod(sizes[axis + 1 :]) * itemsize < _SHORTEST_RUN:
        axis -= 1
    behind = len(sizes) - axis - 1
    return axis, [*offsets[: axis + 1], *[0] * behind], [*lengths[: axis + 1], *sizes[axis + 1 :]]


def _runs(sizes: Sequence[int], axis: int, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[int]:
    """First element of each run of a box in the flat block."""
    strides = [math.prod(sizes[number + 1 :]) for number in range(len(sizes))]
    before = (
        range(begin, begin + length) for begin, length in zip(offsets[:axis], lengths[:axis], strict=True)
    )
    for place in itertools.product(*before):
        yield sum(number * stride for number, stride in zip((*place, offsets[axis]), strides, strict=False))


def _read_part(stream: Any, described: Any, begin: int, item: Any, target: Any) -> None:
    """Reads a part of a stored tensor into `target`.

    Args:
        stream: the file, unbuffered.
        described: a tensor without memory, of the stored one's shape and type.
        begin: byte of the file where its data begin.
        item: torch's request; its `storage_offsets` and `lengths` are those of the part.
        target: tensor of the part's shape.
    """
    import torch

    sizes, width = list(described.shape) or [1], described.element_size()
    offsets, lengths = list(item.storage_offsets) or [0], list(item.lengths) or [1]
    axis, box_offsets, box_lengths = box_to_read(sizes, offsets, lengths, width)
    direct = box_lengths == lengths and target.is_cpu and target.is_contiguous()
    direct &= type(target) is torch.Tensor and target.dtype == described.dtype
    box = target if direct else torch.empty(box_lengths, dtype=described.dtype)
    memory = memoryview(box.reshape(-1).view(torch.uint8).numpy())
    run = math.prod(box_lengths[axis:]) * width
    for number, element in enumerate(_runs(sizes, axis, box_offsets, box_lengths)):
        stream.seek(begin + element * width)
        wanted = memory[number * run : (number + 1) * run]
        while wanted:
            if not (count := stream.readinto(wanted)):
                raise EOFError(f"{stream.name} ends inside {item.storage_index.fqn}")
            wanted = wanted[count:]
    if not direct:
        for number in range(axis + 1, len(sizes)):
            box = box.narrow(number, offsets[number], lengths[number])
        target.copy_(box.view(target.shape))


def _reader(checkpoint_dir: Any, cache_metadata: bool = False, async_strategy: str = "mcore") -> Any:
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
    from torch.futures import Future

    class ExactReader(FileSystemReader):
        """torch's reader of a folder, reading parts."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            path = Path(self._get_metadata_path(kwargs.get("rank"))).resolve()
            state = path.stat()
            key = (str(path), state.st_mtime_ns, state.st_size)
            if key not in _contents:
                _contents.clear()
                _contents[key] = super().read_metadata(*args, **kwargs)
            return _contents[key]

        def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
            whole: list[Any] = []
            parts: list[Any] = []
            for item in plan.items:
                stored = self.storage_data[item.storage_index]
                plain = item.type != LoadItemType.BYTE_IO and not stored.transform_descriptors
                (parts if plain else whole).append(item)
            done: Future[None] = super().read_data(LoadPlan(whole), planner)
            places = self.storage_data
            parts.sort(
                key=lambda item: (places[item.storage_index].relative_path, places[item.storage_index].offset)
            )
            for path, items in itertools.groupby(
                parts, key=lambda item: places[item.storage_index].relative_path
            ):
                # Unbuffered: a buffer would read past what is asked for.
                with Path(self.path, path).open("rb", buffering=0) as stream:
                    for item in items:
                        self._read_item(stream, item, planner)
            return done

        def _read_item(self, stream: Any, item: Any, planner: LoadPlanner) -> None:
            stored = self.storage_data[item.storage_index]
            archive = Archive(io.BufferedReader(Window.of(stream, stored.offset, stored.length), 512))
            form = tensor_form(archive.tree)
            if form is None or form.inner is not None:
                raise ValueError(f"{stream.name}: {item.storage_index.fqn} is no tensor of its own")
            described = torch.empty_strided(
                form.sizes, form.strides, dtype=getattr(torch, form.dtype), device="meta"
            )
            if not described.is_contiguous() or form.offset:
                raise ValueError(f"{stream.name}: {item.storage_index.fqn} is not stored row by row")
            begin, _ = archive.span(form.storage)
            target = planner.resolve_tensor(item).detach()
            if target.size() != item.lengths:
                raise ValueError(f"{item.storage_index}: {tuple(item.lengths)} for {tuple(target.size())}")
            _read_part(stream, described, stored.offset + begin, item, target)
            planner.commit_tensor(item, target)

    return ExactReader(checkpoint_dir)


def install() -> None:
    """Puts the reader in the place of torch's."""
    READER.replace(_reader)
    COMMON.replace(_reader)


PATCH = Patch(
    name="exact-reads",
    targets=(READER, COMMON),
    versions={"megatron-core": ("0.19.2",), "torch": ("2.11.0", "2.12.1", "2.13.0")},
    reason="torch reads a stored block whole for each part of it that a rank needs, and Megatron reads a checkpoint's "
    "table of contents several times per load",
    upstream="https://github.com/pytorch/pytorch/blob/v2.13.0/torch/distributed/checkpoint/filesystem.py",
    condition=lambda machine: Decision(True, "torch reads whole blocks"),
    install=install,
)
