"""Records of input files, batch by batch, as Arrow tables."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import zstandard

from emma.base.errors import UserError
from emma.tools.pack.inputs import Segment

__all__ = ["Batch", "read_segment"]

BATCH_BYTES = 2 << 20
"""Approximate bytes of text in a batch; a process holds a small multiple of it."""


@dataclass(frozen=True)
class Batch:
    """Records of one segment: `table` holds the columns that were asked for and exist, all as large strings.

    `first` is the number of the first row in the file (parquet), or the position of `block` in it (jsonl).
    """

    table: pa.Table
    segment: Segment
    first: int
    block: bytes | None = None

    def place(self, row: int) -> str:
        """Name of a row, for messages and for records without an id: `file@row`, for jsonl `file@byte`."""
        return f"{Path(self.segment.file.path).name}@{self._places[row]}"

    @cached_property
    def _places(self) -> Sequence[int]:
        if self.block is None:
            return range(self.first, self.first + len(self.table))
        places, start = [], self.first
        for line in self.block.split(b"\n"):
            if line and not line.isspace():
                places.append(start)
            start += len(line) + 1
        return places


def read_segment(
    segment: Segment, required: Sequence[str], optional: Sequence[str], *, batch_bytes: int = BATCH_BYTES
) -> Iterator[Batch]:
    """Yields the records of a segment.

    Args:
        segment: where to read.
        required: columns that every record must have (null counts as an empty text).
        optional: columns that are read where they exist.
        batch_bytes: approximate bytes of text in a batch.

    Raises:
        UserError: unreadable file, malformed line, missing field, wrong type; names file, line or row, and
            field.
    """
    if segment.file.kind == "parquet":
        yield from _read_parquet(segment, required, optional, batch_bytes)
    else:
        yield from _read_jsonl(segment, required, optional, batch_bytes)


def _read_parquet(
    segment: Segment, required: Sequence[str], optional: Sequence[str], batch_bytes: int
) -> Iterator[Batch]:
    path = segment.file.path
    try:
        file = pq.ParquetFile(path)
        names = set(file.schema_arrow.names)
        for name in required:
            if name not in names:
                raise UserError(f"{path}: lacks the column {name!r}; it has {', '.join(sorted(names))}")
        columns = [*required, *(name for name in optional if name in names)]
        for name in columns:
            kind = file.schema_arrow.field(name).type
            if not _is_text(kind):
                raise UserError(f"{path}: column {name!r} is {kind}, expected text; convert it")
        groups = range(segment.start, segment.stop)
        row = sum(file.metadata.row_group(index).num_rows for index in range(segment.start))
        rows = sum(file.metadata.row_group(index).num_rows for index in groups)
        size = sum(file.metadata.row_group(index).total_byte_size for index in groups)
        batch_rows = max(16, min(65536, rows * batch_bytes // max(size, 1)))
        for piece in file.iter_batches(
            batch_rows, row_groups=list(groups), columns=columns, use_threads=False
        ):
            table = pa.Table.from_batches([piece]).combine_chunks()
            table = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
            yield Batch(table, segment, row)
            row += len(table)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error}); write it again") from None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _read_jsonl(
    segment: Segment, required: Sequence[str], optional: Sequence[str], batch_bytes: int
) -> Iterator[Batch]:
    fast = True
    for block, position in _line_blocks(segment, batch_bytes):
        table = _parse_columns(block, required, optional) if fast else None
        if table is None:
            # A field that is not text, or a fault: line by line from here, to convert the field or name the
            # fault.
            fast = False
            table = _parse_lines(segment, block, position, required, optional)
        if len(table):
            yield Batch(table, segment, position, block)


def _parse_columns(block: bytes, required: Sequence[str], optional: Sequence[str]) -> pa.Table | None:
    """A block parsed by Arrow, several times faster than line by line; None where it must be read line by
    line."""
    schema = pa.schema([(name, pa.large_string()) for name in (*required, *optional)])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        ).combine_chunks()
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    # Twice as fast as bytes.count.
    newlines = np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    lines = newlines + (not block.endswith(b"\n"))
    # Another number of rows means blank lines, several records on a line, or one over several lines; a null
    # means a field that is null or missing.
    if len(table) != lines or any(table[name].null_count for name in required):
        return None
    return table.select([*required, *(name for name in optional if table[name].null_count < len(table))])


def _parse_lines(
    segment: Segment, block: bytes, position: int, required: Sequence[str], optional: Sequence[str]
) -> pa.Table:
    lines = block.split(b"\n")
    try:
        records = [orjson.loads(line) for line in lines if line and not line.isspace()]
        columns: dict[str, list[Any]] = {
            name: [_text(record[name]) for record in records] for name in required
        }
        for name in optional:
            values = [_text(record.get(name)) for record in records]
            if any(value is not None for value in values):
                columns[name] = values
        return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
    except (
        orjson.JSONDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        pa.ArrowTypeError,
        pa.ArrowInvalid,
        UnicodeEncodeError,
    ):
        raise _first_fault(segment, lines, position, required, optional) from None


def _text(value: Any) -> Any:
    """Numbers as text (ids often are numbers); anything else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _line_blocks(segment: Segment, size: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a segment in blocks of about `size` bytes, with the position of the block's first byte
    in the (uncompressed) file. The last line may lack its newline."""
    path, kind = Path(segment.file.path), segment.file.kind
    try:
        with path.open("rb") as raw:
            if kind == "jsonl":
                position = segment.start
                if position:
                    # The line of the byte before belongs to the previous segment.
                    raw.seek(position - 1)
                    position += len(raw.readline()) - 1
                yield from _blocks(raw.read, size, position, segment.stop, raw.readline)
            elif kind == "jsonl.gz":
                with gzip.open(raw) as stream:
                    yield from _blocks(stream.read, size)
            else:
                yield from _blocks(_ZstdStream(raw).read, size)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); it is truncated or damaged: write it again"
        ) from None


class _ZstdStream:
    """Reads zstandard data of one or several frames. (The library's own reader does not notice a
    truncated file.)"""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._frame, self._inside = raw, zstandard.ZstdDecompressor().decompressobj(), False

    def read(self, size: int) -> bytes:
        """About `size` bytes; none at the end.

        Raises:
            EOFError: the file ends inside a frame.
        """
        parts, length, rest = [], 0, b""
        while length < size:
            chunk = rest or self._raw.read(1 << 17)
            if not chunk:
                if self._inside:
                    raise EOFError("it ends inside a zstandard frame")
                break
            part = self._frame.decompress(chunk)
            parts.append(part)
            length += len(part)
            self._inside, rest = not self._frame.eof, b""
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        if rest:
            self._raw.seek(-len(rest), 1)
        return b"".join(parts)


def _blocks(
    read: Callable[[int], bytes],
    batch_bytes: int,
    position: int = 0,
    stop: int | None = None,
    rest_of_line: Callable[[], bytes] = bytes,
) -> Iterator[tuple[bytes, int]]:
    """Blocks of the lines that begin in [position, stop) of a stream whose position is `position`."""
    rest = b""
    while True:
        start = position
        if stop is not None and start >= stop:
            return
        size = batch_bytes if stop is None else min(batch_bytes, stop - start - len(rest))
        block = read(size) if size > 0 else b""
        content = rest + block
        at_stop = stop is not None and start + len(content) >= stop
        if at_stop and not content.endswith(b"\n"):
            # The last line begins before `stop` and ends after it.
            content += rest_of_line()
        if at_stop or not block:
            if content:
                yield content, start
            return
        cut = content.rfind(b"\n") + 1
        rest = content[cut:]
        if cut:
            yield content[:cut], start
            position = start + cut


def _first_fault(
    segment: Segment, lines: Sequence[bytes], position: int, required: Sequence[str], optional: Sequence[str]
) -> UserError:
    """The first thing wrong in a block of lines, with the line's number in the file."""
    path = segment.file.path
    number = _line_number(segment, position)
    for line in lines:
        where = f"{path}:{number}"
        number += 1
        if not line or line.isspace():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return UserError(f"{where}: not valid JSON ({error}); correct or remove the line")
        if not isinstance(record, dict):
            return UserError(f"{where}: expected an object with fields, found a {type(record).__name__}")
        for name in required:
            if name not in record:
                known = ", ".join(map(str, record)) or "none"
                return UserError(f"{where}: lacks the field {name!r}; its fields are {known}")
        for name in (*required, *optional):
            value = record.get(name)
            if not isinstance(value, str | int | float | None) or isinstance(value, bool):
                return UserError(f"{where}: field {name!r} is a {type(value).__name__}, expected text")
    return UserError(
        f"{path}: lines {number - len(lines)} to {number}: fields of several types; give each one type"
    )


def _line_number(segment: Segment, position: int) -> int:
    """Number of the line that begins at a position of the file."""
    if not position:
        return 1
    whole = Segment(segment.file, 0, segment.file.bytes if segment.file.kind == "jsonl" else 1)
    count = 1
    for block, start in _line_blocks(whole, BATCH_BYTES):
        if start >= position:
            break
        count += block[: position - start].count(b"\n")
    return count
