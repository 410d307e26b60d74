"""What an input file is, told by its content; its name decides only where the content cannot (CSV, TSV, plain text)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import orjson

from emma.base.errors import UserError
from emma.tools.corpus.streams import BOM, compression_of, open_bytes

__all__ = ["FORMATS", "UnreadableFormatError", "kind_by_name", "kind_of"]

FORMATS = "parquet, Arrow, JSON lines, CSV, TSV, TMX or plain text (.txt)"

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".tmx": "tmx",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_PACKED = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
_ARROW_STREAM = b"\xff\xff\xff\xff"
_HEAD = 1 << 16


class UnreadableFormatError(Exception):
    """A file holds nothing that can be packed; the argument says what it is instead."""


def kind_by_name(name: str) -> str | None:
    """Format and compression as a file's name states them, e.g. `jsonl` or `jsonl.gz`; None if it states no format."""
    ending, packed = _endings(name)
    stated = _ENDINGS.get(ending)
    return stated if stated is None or packed is None else f"{stated}.{packed}"


def _endings(name: str) -> tuple[str, str | None]:
    """What a name ends in without the ending of a compression, and that compression."""
    stem, last = os.path.splitext(name.lower())  # noqa: PTH122 - there may be many names
    packed = _PACKED.get(last)
    return (os.path.splitext(stem)[1], packed) if packed else (last, None)  # noqa: PTH122


def kind_of(path: str | Path, required: Sequence[str]) -> str:
    """Format and compression of a file: `parquet`, `arrow`, `jsonl`, `csv`, `tsv`, `tmx` or `text`, followed by
    `.gz`, `.zst`, `.bz2` or `.xz` if it is compressed.

    Args:
        path: the file.
        required: fields that the component's records must have.

    Raises:
        UnreadableFormatError: the file is something else.
        UserError: it cannot be read, or isn't compressed as its name states.
    """
    path = str(path)  # there may be many files
    try:
        with open(path, "rb", buffering=0) as handle:  # noqa: PTH123
            head = handle.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    packed = compression_of(head)
    name = path.rpartition(os.sep)[2]
    stated = kind_by_name(name)
    if not head:
        if stated is None:
            raise UnreadableFormatError("empty")
        return stated
    if packed or (stated and "." in stated):
        with open_bytes(path) as stream:  # which refuses what isn't compressed as its name states
            head = stream.read(_HEAD)
    form = _format(head, name, None if stated is None else stated.partition(".")[0], required)
    return f"{form}.{packed}" if packed else form


def _format(head: bytes, name: str, stated: str | None, required: Sequence[str]) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", _ARROW_STREAM)):
        return "arrow"
    if head.startswith(b"PK\x03\x04"):
        raise UnreadableFormatError("a zip archive; unpack it")
    if head[257:262] == b"ustar":
        raise UnreadableFormatError("a tar archive; unpack it")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFormatError("text in UTF-16; convert it to UTF-8")
    if stated in ("parquet", "arrow"):
        return stated  # damaged: the reader says so
    if b"\0" in head:
        raise UnreadableFormatError(f"binary, but not {FORMATS}")
    body = head.removeprefix(BOM).lstrip()
    if body.startswith(b"<") and (stated == "tmx" or b"<tmx" in body):
        if "src_text" not in required:
            raise UnreadableFormatError("TMX, which holds sentence pairs: for a component of kind bilingual")
        return "tmx"
    if (record := _first_record(body, len(head) == _HEAD)) is not None:
        missing = [field for field in required if field not in record]
        if missing and record and _endings(name)[0] == ".json":
            raise UnreadableFormatError(f"a JSON object without the field {missing[0]!r}")
        return "jsonl"
    if stated == "text" and tuple(required) != ("text",):
        raise UnreadableFormatError(f"plain text, which has no fields {', '.join(required)}")
    if body and _endings(name)[0] == ".json":
        what = "a JSON array" if body.startswith(b"[") else "not an object on its first line"
        raise UnreadableFormatError(
            f"{what}; write each record as an object on a line of its own (JSON lines)"
        )
    if stated is not None:
        return stated
    raise UnreadableFormatError("plain text whose name doesn't end in .txt" if body else "blank")


def _first_record(body: bytes, cut: bool) -> dict[str, object] | None:
    """The JSON object on the first line; empty if the line is longer than what was read of it; else None."""
    if not body.startswith(b"{"):
        return None
    line, newline, _ = body.partition(b"\n")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {} if cut and not newline else None
    return value if isinstance(value, dict) else None
