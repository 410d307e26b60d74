"""Reads the header of a safetensors file and holds it to the format's rules.

A file is eight bytes with the length of a JSON header, the header (name → type, sizes, and location of each
tensor), and the tensors' bytes. The rules are those of the safetensors library (its `Metadata::validate` and
the types that it parses): the tensors' bytes follow each other without gaps, overlaps or a rest, so that no
byte is read twice or never. Where the library is lenient (names given twice, fields that it does not know), a
header that two readers could understand differently is refused as well.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.dtypes import SAFETENSORS_NAMES
from emma.checkpoints_conversion.mapped_file import MappedFile

__all__ = ["LENGTH", "TensorRecord", "read_header"]

LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
_LARGEST_NAME = 500  # characters; a longer one would fill the screen when it is refused
_LARGEST_INTEGER = 2**64 - 1
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorRecord:
    """A tensor in a file: `offset` and `size` in bytes, from the start of the file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:_LARGEST_NAME]!r} is given twice")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # the library takes -0 for a fraction


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    if not content.startswith(b"{"):
        raise UserError(
            f"{path}: its header does not begin with {{; it is no safetensors file, or is damaged"
        )
    try:
        header: dict[str, Any] = json.loads(
            content.decode(), object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer
        )
    except RecursionError:
        raise UserError(f"{path}: its header is nested too deeply; the file is damaged") from None
    except ValueError as error:
        raise UserError(f"{path}: its header is not JSON ({error}); copy the file again") from None
    metadata = header.pop(_METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(_is_text(k) and _is_text(v) for k, v in metadata.items())
    ):
        raise UserError(f"{path}: {_METADATA} of its header is no table of texts; write the file again")
    return header


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_INTEGER


def _record(path: Path, name: str, entry: Any, start: int) -> TensorRecord:
    """One tensor; `start` is where the tensors' bytes begin."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        found = ", ".join(map(repr, sorted(entry)))[:200] if isinstance(entry, Mapping) else repr(entry)[:200]
        raise UserError(
            f"{path}: tensor {name} has {found} in the header instead of dtype, shape, and data_offsets; "
            "the file is damaged"
        )
    dtype = SAFETENSORS_NAMES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise UserError(
            f"{path}: tensor {name} has the type {str(entry['dtype'])[:50]!r}; only {', '.join(SAFETENSORS_NAMES)} can "
            "be converted; dequantise a quantised model first"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise UserError(
            f"{path}: tensor {name} has sizes {repr(shape)[:200]}, which are no list of whole numbers; the file is damaged"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise UserError(
            f"{path}: tensor {name} has data_offsets {repr(offsets)[:200]}, which are not two whole numbers of bytes; "
            "the file is damaged"
        )
    size = dtype.itemsize * 8  # in bits, multiplied in the library's order: no part may exceed its integers
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > _LARGEST_INTEGER:
            break
    if elements * size > _LARGEST_INTEGER:
        raise UserError(
            f"{path}: tensor {name} has sizes {repr(shape)[:200]}, larger than any file; the file is damaged"
        )
    first, end = offsets
    if end - first != elements * dtype.itemsize:
        raise UserError(
            f"{path}: tensor {name} claims {end - first} bytes for sizes {shape}; the file is damaged"
        )
    return TensorRecord(path.name, dtype, tuple(shape), start + first, end - first)


def read_header(mapped: MappedFile) -> dict[str, TensorRecord]:
    """The tensors of a file, by name, in the order of their bytes.

    Raises:
        UserError: the file breaks a rule of the format, is truncated, or has a type that cannot be converted;
            the message names the file and, if applicable, the tensor.
    """
    path = mapped.path
    prefix = mapped.read(0, LENGTH.size)
    length = LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else len(mapped)
    start = LENGTH.size + length
    if length > _LARGEST_HEADER or start > len(mapped):
        raise UserError(f"{path}: truncated inside its header, or not a safetensors file; copy it again")
    header = _parse(path, mapped.read(LENGTH.size, length))
    for name in header:
        if not name.isprintable() or len(name) > _LARGEST_NAME:
            raise UserError(f"{path}: {name[:50]!r} is no name of a parameter; the file is damaged")
    records = {name: _record(path, name, entry, start) for name, entry in header.items()}
    records = dict(sorted(records.items(), key=lambda item: (item[1].offset, item[1].size)))
    position = start
    for name, record in records.items():
        if record.offset + record.size > len(mapped):
            raise UserError(
                f"{path}: {len(mapped)} bytes, but tensor {name} ends at byte {record.offset + record.size}; "
                "the file is truncated: copy it again"
            )
        if record.offset != position:
            what = "shares bytes with the tensor before it" if record.offset < position else "follows a gap"
            raise UserError(
                f"{path}: tensor {name} begins at byte {record.offset} instead of {position}, so it {what}; write the "
                "file again with the safetensors library, or get it from its source"
            )
        position += record.size
    if position != len(mapped):
        raise UserError(
            f"{path}: {len(mapped) - position} bytes after its last tensor belong to none; copy the file again"
        )
    return records
