"""Records of input files, batch by batch, as Arrow tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.manifest import FileRecord
from emma.tools.corpus.streams import BOM, no_json_at_all
from emma.tools.pack.bad_lines import BadLines
from emma.tools.pack.columns import constant
from emma.tools.pack.inputs import InputFile, Segment
from emma.tools.pack.lines import LineNumbers, line_blocks
from emma.tools.pack.tables import COPIES, as_text, read_rows, read_tables, text_bytes

__all__ = ["BATCH_BYTES", "COPIES", "Batch", "Piece", "read_heads", "read_segment", "read_segments"]

BATCH_BYTES = 2 << 20
"""Approximate bytes of text in a batch; a process holds a small multiple of it."""
_SMALL = 256 << 10


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a batch that come from one file.

    `first` is the number of the first row in the file, or the position of `block`, whose usable lines the rows are, in
    it; `places` are the rows' numbers or positions where they don't follow from that.
    """

    segment: Segment
    rows: int
    first: int
    block: bytes | None = None
    places: Sequence[int] | None = None

    @cached_property
    def all_places(self) -> Sequence[int]:
        """Number or position of each row in the file."""
        if self.places is not None:
            return self.places
        if self.block is None:
            return range(self.first, self.first + self.rows)
        places, start = [], self.first
        for line in self.block.split(b"\n"):
            if line and not line.isspace():
                places.append(start)
            start += len(line) + 1
        return places


@dataclass(frozen=True)
class Batch:
    """Records: `table` holds the columns that were asked for and exist, all as large strings; `pieces` say which files
    its rows come from, in order."""

    table: pa.Table
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, table: pa.Table, segment: Segment, first: int = 0) -> Batch:
        """A batch of rows of one file, numbered from `first`."""
        return cls(table, (Piece(segment, len(table), first),))

    @cached_property
    def _stops(self) -> list[int]:
        return list(accumulate(piece.rows for piece in self.pieces))

    def _piece(self, row: int) -> tuple[Piece, int]:
        number = int(np.searchsorted(self._stops, row, side="right"))
        return self.pieces[number], row - (self._stops[number] - self.pieces[number].rows)

    def file(self, row: int = 0) -> InputFile:
        """The file of a row."""
        return self._piece(row)[0].segment.file

    def place(self, row: int) -> str:
        """Name of a row, for messages and for records without an id: `file@row`, for jsonl `file@byte`."""
        piece, within = self._piece(row)
        return f"{Path(piece.segment.file.path).name}@{piece.all_places[within]}"

    def by_file(self, value: Callable[[InputFile], str]) -> pa.ChunkedArray:
        """A column with a value that depends on the row's file."""
        if len(self.pieces) == 1:
            return constant(value(self.pieces[0].segment.file), len(self.table))
        values = pa.array([value(piece.segment.file) for piece in self.pieces], pa.large_string())
        numbers = np.repeat(np.arange(len(self.pieces)), [piece.rows for piece in self.pieces])
        return pa.chunked_array([values.take(pa.array(numbers))])


def read_segments(
    segments: Iterable[Segment],
    required: Sequence[str],
    optional: Sequence[str],
    *,
    batch_bytes: int = BATCH_BYTES,
    bad: BadLines | None = None,
    records: list[FileRecord] | None = None,
) -> Iterator[Batch]:
    """Yields the records of consecutive segments; small ones share a batch.

    Args:
        segments: where to read.
        required: columns that every record must have (null counts as an empty text).
        optional: columns that are read where they exist.
        batch_bytes: approximate bytes of text in a batch.
        bad: gets unusable records; without it the first one is an error.
        records: gets each file that begins here, with its SHA-256.

    Raises:
        UserError: unreadable file, malformed line, missing field, wrong type; names file, line or row, and
            field.
    """
    bad = BadLines() if bad is None else bad
    yield from _merge(_each(segments, required, optional, batch_bytes, bad, records), batch_bytes)


def read_heads(
    segments: Iterable[Segment],
    required: Sequence[str],
    optional: Sequence[str],
    *,
    bytes_each: int,
    bad: BadLines | None = None,
) -> Iterator[Batch]:
    """As `read_segments`, but only the first records of each segment, in about `bytes_each` bytes."""
    bad = BadLines() if bad is None else bad
    yield from _merge(_each(segments, required, optional, bytes_each, bad, None, heads=True), BATCH_BYTES)


def _merge(batches: Iterable[Batch], batch_bytes: int) -> Iterator[Batch]:
    """Batches of about `batch_bytes`: small ones are put together."""
    waiting: list[Batch] = []
    size = 0
    for batch in batches:
        bytes_ = text_bytes(batch.table)
        alike = not waiting or batch.table.column_names == waiting[0].table.column_names
        if waiting and (not alike or size + bytes_ > batch_bytes):
            yield _merged(waiting)
            waiting, size = [], 0
        waiting.append(batch)
        size += bytes_
    if waiting:
        yield _merged(waiting)


def _merged(batches: Sequence[Batch]) -> Batch:
    """One batch of several, with large strings in all columns."""
    tables = (batch.table for batch in batches)
    parts = [as_text(_joined(list(alike))) for _, alike in groupby(tables, key=lambda table: table.schema)]
    return Batch(_joined(parts), tuple(piece for batch in batches for piece in batch.pieces))


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _each(
    segments: Iterable[Segment],
    required: Sequence[str],
    optional: Sequence[str],
    batch_bytes: int,
    bad: BadLines,
    records: list[FileRecord] | None,
    *,
    heads: bool = False,
) -> Iterator[Batch]:
    """Batches of one file each, or of several small jsonl files, which are parsed together; with `heads`, the first one
    of each segment."""
    small_bytes, together = (min(_SMALL, batch_bytes), BATCH_BYTES) if heads else (_SMALL, batch_bytes)
    small: list[tuple[Segment, bytes]] = []
    size = 0
    for segment in segments:
        file = segment.file
        if file.kind == "jsonl" and segment.first and segment.stop == file.bytes <= small_bytes:
            content = _content(file)
            if records is not None:
                records.append(_record(file, hashlib.sha256(content).hexdigest()))
            small.append((segment, content))
            size += len(content)
            if size >= together:
                yield from _read_small(small, required, optional, bad)
                small, size = [], 0
            continue
        yield from _read_small(small, required, optional, bad)
        small, size = [], 0
        whole = _content(file) if segment.first and file.bytes <= small_bytes else None
        if segment.first and records is not None:
            digest = sha256_file(Path(file.path)) if whole is None else hashlib.sha256(whole).hexdigest()
            records.append(_record(file, digest))
        batches = read_segment(segment, required, optional, batch_bytes=batch_bytes, bad=bad, content=whole)
        yield from islice(batches, 1) if heads else batches
    yield from _read_small(small, required, optional, bad)


def _of_text(optional: Sequence[str]) -> list[str]:
    """Optional columns of files without types: counts are only read from tables."""
    return [name for name in optional if name != COPIES]


def _content(file: InputFile) -> bytes:
    try:
        with open(file.path, "rb", buffering=0) as stream:  # noqa: PTH123 - 20,000 paths would take a second
            content = stream.read()
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror or error})") from None
    if len(content) != file.bytes:
        raise UserError(
            f"{file.path}: {len(content)} bytes, but {file.bytes} when it was listed; it is being written"
        )
    return content


def _record(file: InputFile, sha256: str) -> FileRecord:
    return FileRecord(file.path, file.bytes, f"sha256:{sha256}")


def _read_small(
    files: Sequence[tuple[Segment, bytes]], required: Sequence[str], optional: Sequence[str], bad: BadLines
) -> Iterator[Batch]:
    """Records of whole small files, parsed as one block."""
    if not files:
        return
    blocks = [content.removeprefix(BOM) for _, content in files]
    blocks = [block if block.endswith(b"\n") or not block else block + b"\n" for block in blocks]
    optional = _of_text(optional)
    table = _parse_columns(b"".join(blocks), required, optional)
    # A field that only some files have is missing in the others, which is not the same as empty.
    if table is None or any(table[name].null_count for name in table.column_names):
        for segment, content in files:
            yield from _parse_blocks(segment, [(content, 0)], required, optional, bad)
        return
    pieces = [
        Piece(segment, block.count(b"\n"), len(content) - len(content.removeprefix(BOM)), block)
        for (segment, content), block in zip(files, blocks, strict=True)
        if block
    ]
    bad.records += len(table)
    yield Batch(table, tuple(pieces))


def read_segment(
    segment: Segment,
    required: Sequence[str],
    optional: Sequence[str],
    *,
    batch_bytes: int = BATCH_BYTES,
    bad: BadLines | None = None,
    content: bytes | None = None,
) -> Iterator[Batch]:
    """Yields the records of one segment; for the arguments and errors see `read_segments`. With a table's `content`, its
    columns may be strings still."""
    bad = BadLines() if bad is None else bad
    form = segment.file.kind.partition(".")[0]
    if form not in ("parquet", "arrow"):
        optional = _of_text(optional)
    if form == "jsonl":
        yield from _parse_blocks(segment, line_blocks(segment, batch_bytes), required, optional, bad)
    elif form in ("parquet", "arrow"):
        whole = None if "." in segment.file.kind else content
        for table, first, places in read_tables(segment, required, optional, batch_bytes, bad, whole):
            yield Batch(table, (Piece(segment, len(table), first, places=places),))
    else:
        for table, places in read_rows(segment, required, optional, batch_bytes, bad):
            yield Batch(table, (Piece(segment, len(table), 0, places=places),))


def _parse_blocks(
    segment: Segment,
    blocks: Iterable[tuple[bytes, int]],
    required: Sequence[str],
    optional: Sequence[str],
    bad: BadLines,
) -> Iterator[Batch]:
    numbers = LineNumbers(segment)
    fast = True
    for whole, start in blocks:
        block, position = (
            (whole, start) if start else (whole.removeprefix(BOM), len(whole) - len(whole.removeprefix(BOM)))
        )
        table, places = _parse_columns(block, required, optional) if fast else None, None
        lines = 0 if table is None else len(table)
        if table is None:
            lines = block.count(b"\n")
            faults = len(bad.found)
            table, places = _parse_lines(segment, block, position, required, optional, bad, numbers)
            # A block without a fault has fields that are not text: so will the next ones.
            fast = len(bad.found) > faults
        numbers.pass_over(lines)
        bad.records += len(table)
        if len(table):
            yield Batch(table, (Piece(segment, len(table), position, block, places),))


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
    segment: Segment,
    block: bytes,
    position: int,
    required: Sequence[str],
    optional: Sequence[str],
    bad: BadLines,
    numbers: LineNumbers,
) -> tuple[pa.Table, list[int]]:
    """The usable records of a block, and their positions in the file."""
    columns: dict[str, list[str | None]] = {name: [] for name in (*required, *optional)}
    places: list[int] = []
    for number, line in enumerate(block.split(b"\n")):
        if line and not line.isspace():
            values = _values(line, required, optional)
            if isinstance(values, str):
                bad.add(segment.file.path, numbers.first + number, values, line)
            else:
                places.append(position)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
        position += len(line) + 1
    present = [name for name in columns if name in required or any(v is not None for v in columns[name])]
    return pa.table({name: pa.array(columns[name], pa.large_string()) for name in present}), places


def _values(line: bytes, required: Sequence[str], optional: Sequence[str]) -> list[str | None] | str:
    """A record's fields as text, or what is wrong with it. Numbers become text, since ids often are numbers."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not valid JSON ({error}){no_json_at_all(line)}"
    if not isinstance(record, dict):
        return f"expected an object with fields, found a {type(record).__name__}"
    for name in required:
        if name not in record:
            return f"lacks the field {name!r}; its fields are {', '.join(map(str, record)) or 'none'}"
    values: list[str | None] = []
    for name in (*required, *optional):
        value: Any = record.get(name)
        if not isinstance(value, str | int | float | None) or isinstance(value, bool):
            return f"field {name!r} is a {type(value).__name__}, expected text"
        values.append(str(value) if isinstance(value, int | float) else value)
    return values
