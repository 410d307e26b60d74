"""The `.metadata` of a `torch_dist` checkpoint: its tensors, and where their blocks lie. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emma.tools.inspection.names import DTYPES
from emma.tools.inspection.trees import Global, PickleError, Record

__all__ = ["Layout", "Stored", "Tensor", "layout"]

_DCP = "torch.distributed.checkpoint"


@dataclass(frozen=True)
class Stored:
    """A block: its file in the checkpoint's folder, its first byte, its number of bytes."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """A global tensor: torch's name of its type, its sizes, and offsets and sizes of its blocks."""

    dtype: str
    sizes: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """What a checkpoint holds: tensors, and keys of other objects; and where each block of them is stored.

    A block's key is the tensor's and its first element, or an object's and None.
    """

    tensors: Mapping[str, Tensor]
    objects: tuple[str, ...]
    stored: Mapping[tuple[str, tuple[int, ...] | None], Stored]

    def missing(self) -> list[str]:
        """Tensors that the stored blocks do not fill, and objects that are stored nowhere."""
        faults = [f"{key}: stored nowhere" for key in self.objects if (key, None) not in self.stored]
        for key, tensor in self.tensors.items():
            sizes = [size for offset, size in tensor.chunks if (key, offset) in self.stored]
            if (found := sum(map(math.prod, sizes))) != math.prod(tensor.sizes):
                faults.append(f"{key}: {found} of {math.prod(tensor.sizes)} values are stored")
        return faults


def layout(tree: Any) -> Layout:
    """Reads and checks what `pickles.read` found in `.metadata`.

    Raises:
        PickleError: it is something else, or refers to files outside of the checkpoint's folder.
    """
    fields = _fields(tree, f"{_DCP}.metadata.Metadata")
    if (meta := fields.get("storage_meta")) is not None:
        _fields(meta, f"{_DCP}.metadata.StorageMeta")
    tensors: dict[str, Tensor] = {}
    objects = []
    for key, entry in _table(fields, "state_dict_metadata").items():
        if not isinstance(key, str):
            raise PickleError("a tensor whose name is not a text")
        if isinstance(entry, Record) and entry.name == f"{_DCP}.metadata.BytesStorageMetadata":
            objects.append(key)
        else:
            tensors[key] = _tensor(key, _fields(entry, f"{_DCP}.metadata.TensorStorageMetadata"))
    stored: dict[tuple[str, tuple[int, ...] | None], Stored] = {}
    for index, info in _table(fields, "storage_data").items():
        place = _fields(index, f"{_DCP}.metadata.MetadataIndex")
        offset = place.get("offset")
        if not isinstance(name := place.get("fqn"), str):
            raise PickleError("a block whose name is not a text")
        stored[name, None if offset is None else _sizes(offset)] = _stored(
            _fields(info, f"{_DCP}.filesystem._StorageInfo")
        )
    return Layout(tensors, tuple(objects), stored)


def _fields(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Record) or value.name != name or not isinstance(value.state, dict | type(None)):
        raise PickleError(f"something else where a {name.rpartition('.')[2]} should be")
    return value.state or {}


def _table(fields: Mapping[str, Any], key: str) -> dict[Any, Any]:
    value = fields.get(key)
    if not isinstance(value, dict):
        raise PickleError(f"`{key}` is not a table")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.arguments) == 1:
        sizes = value.arguments[0]
        if isinstance(sizes, tuple | list) and all(isinstance(n, int) and 0 <= n < 1 << 62 for n in sizes):
            return tuple(sizes)
    raise PickleError("sizes that are not whole numbers")


def _tensor(key: str, fields: Mapping[str, Any]) -> Tensor:
    properties, chunks = fields.get("properties"), fields.get("chunks")
    if not isinstance(properties, Record) or not isinstance(properties.state, tuple) or not properties.state:
        raise PickleError(f"{key}: a tensor without properties")
    dtype = properties.state[0]
    if not isinstance(dtype, Global) or dtype.name.removeprefix("torch.") not in DTYPES:
        raise PickleError(f"{key}: a tensor of an unknown type")
    if not isinstance(chunks, list):
        raise PickleError(f"{key}: a tensor without blocks")
    blocks = [_fields(chunk, f"{_DCP}.metadata.ChunkStorageMetadata") for chunk in chunks]
    return Tensor(
        dtype.name.removeprefix("torch."),
        _sizes(fields.get("size")),
        tuple((_sizes(block.get("offsets")), _sizes(block.get("sizes"))) for block in blocks),
    )


def _stored(fields: Mapping[str, Any]) -> Stored:
    file, offset, length = (fields.get(name) for name in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or "/" in file or "\0" in file or file in ("", ".", ".."):
        raise PickleError(f"a block in the file {file!r}, which is not in the checkpoint's folder")
    if not all(isinstance(number, int) and 0 <= number < 1 << 62 for number in (offset, length)):
        raise PickleError(f"a block at {offset!r} of {length!r} bytes")
    if fields.get("transform_descriptors"):
        raise PickleError("blocks that were transformed when they were written")
    return Stored(file, int(offset or 0), int(length or 0))
