"""Records of files that are tables: parquet and Arrow column by column; CSV, TSV, TMX and plain text row by row, as the
corpus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Source
from emma.tools.corpus.reading import Fault
from emma.tools.corpus.reading import read_rows as read_source
from emma.tools.corpus.source_files import SourceFile
from emma.tools.pack.bad_lines import BadLines
from emma.tools.pack.inputs import Segment

__all__ = ["COPIES", "as_text", "read_rows", "read_tables", "text_bytes"]

COPIES = "copies"
"""Column of whole numbers in tables of the corpus (`deduplication.counts`): of how many documents each is what is left."""

_LARGEST_RECORD = 1 << 30
_SMALL = 1 << 20
_STRING = pa.string().id
_STRINGS = {_STRING, pa.large_string().id}


def as_text(table: pa.Table) -> pa.Table:
    """A table with large strings in all columns."""
    schema = pa.schema([(name, pa.large_string()) for name in table.column_names])
    return table if table.schema.equals(schema) else table.cast(schema)


def text_bytes(table: pa.Table) -> int:
    """Bytes of a table of strings as one of large strings."""
    narrow = sum(kind.id == _STRING for kind in table.schema.types)
    return int(table.nbytes) + 4 * (len(table) + 1) * narrow


def read_tables(
    segment: Segment,
    required: Sequence[str],
    optional: Sequence[str],
    batch_bytes: int,
    bad: BadLines,
    content: bytes | None = None,
) -> Iterator[tuple[pa.Table, int, list[int] | None]]:
    """Yields tables of a parquet or Arrow file, the number of the first row in the file, and the rows' numbers if some are
    set aside. All columns are large strings; of a small parquet file they may be strings, since turning many tables into
    others takes longer than one of all their rows (`as_text`).

    Args:
        segment: where to read.
        required: columns that there must be.
        optional: columns that are read where they exist.
        batch_bytes: approximate bytes of text in a table.
        bad: gets rows that are no UTF-8.
        content: of the file, if it has been read.

    Raises:
        UserError: the file cannot be read, lacks a column, or a column isn't text.
    """
    path = segment.file.path
    try:
        for table, first, is_whole in _pieces(segment, required, optional, batch_bytes, content):
            _check_copies(table, path, first)
            if not is_whole or any(kind.id not in _STRINGS for kind in table.schema.types):
                table = as_text(table)
            try:
                table.validate(full=True)
                places = None
            except pa.ArrowInvalid:
                table, places = _valid(as_text(table), path, first, bad)
            bad.records += len(table)
            yield table, first, places
    except (pa.ArrowInvalid, OSError) as error:
        what = "Arrow" if segment.file.kind == "arrow" else "parquet"
        raise UserError(f"{path}: cannot be read as {what} ({error}); write it again") from None


def _columns(path: str, schema: pa.Schema, required: Sequence[str], optional: Sequence[str]) -> list[str]:
    names = set(schema.names)
    # (Text of that name is something else.)
    if COPIES in names and not pa.types.is_integer(schema.field(COPIES).type):
        names.discard(COPIES)
    for name in required:
        if name not in names:
            raise UserError(f"{path}: lacks the column {name!r}; it has {', '.join(sorted(names))}")
    columns = [*required, *(name for name in optional if name in names)]
    for name in columns:
        kind = schema.field(name).type
        if name != COPIES and not _is_text(kind):
            raise UserError(f"{path}: column {name!r} is {kind}, expected text; convert it")
    return columns


def _check_copies(table: pa.Table, path: str, first: int) -> None:
    """Raises:
    UserError: a document is said to be what is left of none.
    """
    if COPIES in table.column_names:
        wrong = pc.less(table[COPIES], 1)
        if pc.any(wrong).as_py():
            row = pc.index(wrong, True).as_py()
            raise UserError(
                f"{path}: row {first + row} has {COPIES} {table[COPIES][row]}, but a document counts itself; correct or drop "
                "the column"
            )


def _pieces(
    segment: Segment,
    required: Sequence[str],
    optional: Sequence[str],
    batch_bytes: int,
    content: bytes | None,
) -> Iterator[tuple[pa.Table, int, bool]]:
    """Tables of about `batch_bytes`, the number of each one's first row, and whether it is all of a parquet file that has
    been read (of slices, the bytes are not those of copies)."""
    path = segment.file.path
    if segment.file.kind.startswith("arrow"):
        with pa.memory_map(path) if content is None else pa.BufferReader(content) as source:
            magic = source.read(6)
            source.seek(0)
            reader: Any
            if magic == b"ARROW1":
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                reader = batches = pa.ipc.open_stream(source)
            columns = _columns(path, reader.schema, required, optional)
            row = 0
            for batch in batches:
                table = pa.Table.from_batches([batch]).select(columns)
                step = _rows_of(len(table), table.nbytes, batch_bytes)
                for start in range(0, len(table), step):
                    yield table.slice(start, step), row + start, False
                row += len(table)
        return
    # Reading ahead, by other threads, takes longer than reading a small file.
    source = path if content is None else pa.BufferReader(content)
    file = pq.ParquetFile(source, pre_buffer=segment.file.bytes > _SMALL)
    columns = _columns(path, file.schema_arrow, required, optional)
    groups = range(segment.start, segment.stop)
    counts = [file.metadata.row_group(index) for index in range(segment.stop)]
    row = sum(group.num_rows for group in counts[: segment.start])
    rows = sum(group.num_rows for group in counts[segment.start :])
    size = sum(group.total_byte_size for group in counts[segment.start :])
    step = _rows_of(rows, size, batch_bytes)
    for piece in file.iter_batches(step, row_groups=list(groups), columns=columns, use_threads=False):
        yield pa.Table.from_batches([piece]), row, content is not None and row == 0 and len(piece) == rows
        row += len(piece)


def _rows_of(rows: int, size: int, batch_bytes: int) -> int:
    return max(16, min(65536, rows * batch_bytes // max(size, 1)))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(kind.id in _STRINGS or pa.types.is_null(kind))


def _valid(table: pa.Table, path: str, first: int, bad: BadLines) -> tuple[pa.Table, list[int]]:
    """The rows that are UTF-8, and their numbers."""
    good = np.ones(len(table), bool)
    for name in table.column_names:
        for row, value in enumerate(table[name].cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                if good[row]:
                    bad.add(path, first + row, f"invalid UTF-8 at byte {error.start + 1} of {name!r}", value)
                good[row] = False
    return table.filter(pa.array(good)), (first + np.flatnonzero(good)).tolist()


def read_rows(
    segment: Segment, required: Sequence[str], optional: Sequence[str], batch_bytes: int, bad: BadLines
) -> Iterator[tuple[pa.Table, list[int]]]:
    """Yields tables of large strings of a CSV, TSV, TMX or text file, and the rows' numbers.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    path, form = segment.file.path, segment.file.kind.partition(".")[0]
    # Not validated: a source of the corpus also says what a component of the store doesn't, such as the licence.
    source = Source.model_construct(
        kind="monolingual",
        path=path,
        license="",
        format=cast(Any, form),
        text_columns=["text"] if form == "text" else [],
        src_text_column="src_text",
        tgt_text_column="tgt_text",
        license_column=None,
        id_column=None,
    )
    names = (*required, *optional)
    rows: list[list[str | None]] = []
    places: list[int] = []
    size = 0
    for row in read_source(SourceFile("", 0, path, None, path, {}), source, _LARGEST_RECORD):
        if isinstance(row, Fault):
            bad.add(path, row.number, row.reason, row.excerpt)
            continue
        if missing := [name for name in required if name not in row.values]:
            raise UserError(f"{path}: lacks the column {missing[0]!r}; it has {', '.join(row.values)}")
        # An empty field of an optional column says nothing, as in CSV there is no other way to say so.
        values = [row.values.get(name) or ("" if name in required else None) for name in names]
        rows.append(values)
        places.append(row.number)
        size += sum(len(value or "") for value in values)
        if size >= batch_bytes:
            yield _table(rows, names, required), places
            bad.records += len(rows)
            rows, places, size = [], [], 0
    if rows:
        yield _table(rows, names, required), places
        bad.records += len(rows)


def _table(rows: list[list[str | None]], names: Sequence[str], required: Sequence[str]) -> pa.Table:
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    present = [
        name for name in names if name in required or any(value is not None for value in columns[name])
    ]
    return pa.table({name: pa.array(columns[name], pa.large_string()) for name in present})
