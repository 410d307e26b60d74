"""Reads rows of source files in any supported format, and says what is wrong with unusable ones."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.remote import is_remote, open_remote
from emma.recipes.schema.corpus import Source
from emma.tools.corpus.source_files import SourceFile
from emma.tools.corpus.streams import decode, lines, no_json_at_all, open_bytes

__all__ = ["Fault", "Row", "columns_needed", "read_rows"]

_EXCERPT = 200


@dataclass(frozen=True)
class Row:
    """One row; `number` is its line (for CSV, its last line; for parquet and TMX, its position from 1)."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """An unusable row, and why it is; `oversized` rows are valid but longer than the recipe allows."""

    number: int
    reason: str
    excerpt: str = ""
    oversized: bool = False


def columns_needed(source: Source) -> list[str]:
    """Columns that the source must have, in a fixed order."""
    columns: list[str | None] = []
    if source.kind == "parallel":
        columns += [
            source.src_text_column,
            source.tgt_text_column,
            source.src_lang_column,
            source.tgt_lang_column,
        ]
    else:
        columns += [*source.text_columns, source.language_column]
    columns += [source.license_column, source.id_column]
    return [column for column in dict.fromkeys(columns) if column]


def read_rows(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    """Rows of a file, in order.

    Args:
        file: the file.
        source: its source, for format and columns.
        max_bytes: longer rows are yielded as oversized faults, without being held in memory whole.

    Raises:
        UserError: the file as a whole is unusable: truncated, damaged, in another format, lacking a column in
            its header, or a Moses file whose sides differ in length.
    """
    readers: dict[str, Callable[[SourceFile, Source, int], Iterator[Row | Fault]]] = {
        "jsonl": _jsonl,
        "csv": _csv,
        "tsv": _csv,
        "parquet": _parquet,
        "text": _text,
        "tmx": _tmx,
        "moses": _moses,
    }
    return readers[source.format_of(file.path)](file, source, max_bytes)


def _too_long(number: int, size: int, limit: int) -> Fault:
    return Fault(number, f"{size:,} bytes, more than the {limit:,} of max_document_megabytes", oversized=True)


def _excerpt(line: bytes) -> str:
    return line[:_EXCERPT].decode("utf-8", "replace")


def _jsonl(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    needed = columns_needed(source)
    with open_bytes(file.path) as stream:
        # An escaped letter takes six bytes, where UTF-8 takes two or more (ASCII is not escaped).
        for number, line in lines(stream, 3 * max_bytes):
            if isinstance(line, int):
                yield _too_long(number, line, max_bytes)
                continue
            if not line.strip():
                continue
            try:
                values = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield Fault(number, _json_fault(line, error), _excerpt(line))
                continue
            if not isinstance(values, dict):
                yield Fault(number, f"a JSON {type(values).__name__}, not an object", _excerpt(line))
                continue
            missing = [key for key in needed if key not in values]
            if missing:
                yield Fault(
                    number, f"no key `{missing[0]}` (its keys: {', '.join(values) or 'none'})", _excerpt(line)
                )
                continue
            yield Row(number, values)


def _json_fault(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        decode(line)
    except ValueError as fault:
        return str(fault)
    return f"not valid JSON: {error}{no_json_at_all(line)}"


def _check_header(file: SourceFile, needed: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in needed if column not in columns]
    if missing:
        raise UserError(
            f"{file.path}: line 1: no column `{missing[0]}`; it has {', '.join(f'`{c}`' for c in columns) or 'none'}; "
            f"name the right one in data.corpus.sources.{file.source}"
        )


def _csv(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    form = source.format_of(file.path)
    quoting = source.quoting if source.quoting is not None else form == "csv"
    with open_bytes(file.path) as stream:
        rows = _quoted(stream, form, max_bytes) if quoting else _split(stream, form, max_bytes)
        header = source.columns
        for number, fields in rows:
            if isinstance(fields, Fault):
                yield fields
                continue
            if header is None:
                header = fields
                _check_header(file, columns_needed(source), header)
                continue
            if len(fields) != len(header):
                yield Fault(
                    number,
                    f"{len(fields)} fields for {len(header)} columns",
                    str(fields)[:_EXCERPT],
                )
                continue
            bad = next(
                (column for column, field in zip(header, fields, strict=True) if _surrogates(field)), None
            )
            if bad is not None:
                yield Fault(number, f"invalid UTF-8 in `{bad}`")
                continue
            yield Row(number, dict(zip(header, fields, strict=True)))


def _surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _split(stream: Any, form: str, max_bytes: int) -> Iterator[tuple[int, list[str] | Fault]]:
    separator = "\t" if form == "tsv" else ","
    for number, line in lines(stream, 2 * max_bytes):
        if isinstance(line, int):
            yield number, _too_long(number, line, max_bytes)
        elif line:
            yield number, line.decode("utf-8", "surrogateescape").split(separator)


def _quoted(stream: Any, form: str, max_bytes: int) -> Iterator[tuple[int, list[str] | Fault]]:
    oversized: list[Fault] = []

    def text() -> Iterator[str]:
        for number, line in lines(stream, 2 * max_bytes):
            if isinstance(line, int):
                oversized.append(_too_long(number, line, max_bytes))
            else:
                yield line.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(2 * max_bytes)
    reader = csv.reader(text(), delimiter="\t" if form == "tsv" else ",")
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield (
                reader.line_num,
                Fault(reader.line_num, f"not valid {form} ({error}); is a quotation mark unclosed?"),
            )
            continue
        while oversized:
            fault = oversized.pop(0)
            yield fault.number, fault
        if fields is None:
            return
        if fields:
            yield reader.line_num, fields


def _parquet(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    needed = columns_needed(source)
    try:
        with open_remote(file.path) if is_remote(file.path) else Path(file.path).open("rb") as stream:
            table = pq.ParquetFile(stream)
            _check_header(file, needed, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=needed):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.path}: not a readable parquet file ({str(error).splitlines()[0]}); fetch it again"
        ) from None


def _text(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    column = source.text_columns[0]
    with open_bytes(file.path) as stream:
        if source.text_unit == "file":
            content = stream.read(max_bytes + 1)
            if len(content) > max_bytes:
                size = len(content)
                while more := stream.read(1 << 20):
                    size += len(more)
                yield _too_long(1, size, max_bytes)
                return
            yield _document(1, [(1, content.removeprefix(b"\xef\xbb\xbf"))], column)
        elif source.text_unit == "line":
            for number, line in lines(stream, max_bytes):
                if isinstance(line, int):
                    yield _too_long(number, line, max_bytes)
                elif line.strip():
                    yield _document(number, [(number, line)], column)
        else:
            yield from _blocks(stream, column, max_bytes)


def _blocks(stream: Any, column: str, max_bytes: int) -> Iterator[Row | Fault]:
    block: list[tuple[int, bytes]] = []
    size = start = 0
    for number, line in lines(stream, max_bytes):
        if not isinstance(line, int) and not line.strip():
            if size:
                yield (
                    _too_long(start, size, max_bytes) if size > max_bytes else _document(start, block, column)
                )
            block, size = [], 0
            continue
        start = start if size else number
        if isinstance(line, int):
            size += line
        else:
            size += len(line) + 1
            if size <= max_bytes:
                block.append((number, line))
    if size:
        yield _too_long(start, size, max_bytes) if size > max_bytes else _document(start, block, column)


def _document(number: int, parts: list[tuple[int, bytes]], column: str) -> Row | Fault:
    texts = []
    for line_number, line in parts:
        try:
            texts.append(decode(line))
        except ValueError as error:
            return Fault(line_number, str(error), _excerpt(line))
    return Row(number, {column: "\n".join(texts)})


def _moses(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    if file.target is None:
        raise UserError(f"{file.path}: this Moses file lacks its other side")
    with open_bytes(file.path) as left, open_bytes(file.target) as right:
        for one, other in zip_longest(lines(left, max_bytes), lines(right, max_bytes)):
            if one is None or other is None:
                shorter, longer = (file.path, file.target) if one is None else (file.target, file.path)
                end = (other or one)[0]
                raise UserError(
                    f"{shorter}: ends at line {end - 1}, but {longer} continues: the sides are not aligned; "
                    "fetch both again"
                )
            number = one[0]
            if isinstance(one[1], int) or isinstance(other[1], int):
                size = max(side[1] for side in (one, other) if isinstance(side[1], int))
                yield _too_long(number, size, max_bytes)
                continue
            values: dict[str, str] = {}
            fault = None
            for path, column, line in (
                (file.path, source.src_text_column, one[1]),
                (file.target, source.tgt_text_column, other[1]),
            ):
                try:
                    values[column] = decode(line)
                except ValueError as error:
                    fault = Fault(number, f"{path}: {error}", _excerpt(line))
            yield fault or Row(number, values)


_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def _tmx(file: SourceFile, source: Source, max_bytes: int) -> Iterator[Row | Fault]:
    """Translation units as pairs: the source language's text with that of each other language.

    The keys are `src_lang`, `tgt_lang` and the source's text columns.
    """
    import xml.etree.ElementTree as ElementTree

    with open_bytes(file.path) as stream:
        number, source_language = 0, ""
        parents: list[Any] = []
        try:
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                name = element.tag.rpartition("}")[2]
                if event == "start":
                    parents.append(element)
                    continue
                parents.pop()
                if name == "header":
                    source_language = element.get("srclang", "").lower()
                elif name == "tu":
                    number += 1
                    yield from _unit(number, element, source_language, source)
                    if parents:
                        parents[-1].remove(element)
        except ElementTree.ParseError as error:
            line, column = error.position
            raise UserError(
                f"{file.path}: line {line}, column {column}: not valid XML ({error.msg}); the file is truncated or "
                "damaged, fetch it again"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file.path}: not in the encoding it declares ({error}); fetch it again"
            ) from None
        if not number:
            raise UserError(f"{file.path}: no translation unit (<tu>) in it; is it a TMX file?")


def _unit(number: int, unit: Any, source_language: str, source: Source) -> Iterator[Row | Fault]:
    sides: list[tuple[str, str]] = []
    for variant in unit:
        if variant.tag.rpartition("}")[2] != "tuv":
            continue
        language = variant.get(_XML_LANGUAGE) or variant.get("lang")
        segment = next((child for child in variant if child.tag.rpartition("}")[2] == "seg"), None)
        if not language or segment is None:
            yield Fault(number, "a <tuv> without xml:lang or without <seg>")
            return
        sides.append((language, "".join(segment.itertext())))
    if len(sides) < 2:
        yield Fault(number, f"{len(sides)} language(s) in the translation unit; it needs two or more")
        return
    first = next((i for i, (language, _) in enumerate(sides) if language.lower() == source_language), 0)
    for index, (language, text) in enumerate(sides):
        if index != first:
            yield Row(
                number,
                {
                    "src_lang": sides[first][0],
                    source.src_text_column: sides[first][1],
                    "tgt_lang": language,
                    source.tgt_text_column: text,
                },
            )
