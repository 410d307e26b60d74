"""Reads and checks the rows of a benchmark's source, by language and split."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import orjson

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import ENGLISH, Source, get_source
from emma.tools.evaluation.benchmarks.layout import ENDINGS, configured_files, find_files
from emma.tools.evaluation.benchmarks.stores import Store

__all__ = ["Row", "available", "files_of", "read_file", "read_rows"]

type Row = dict[str, Any]


def files_of(store: Store, source: Source, code: str, split: str) -> list[str]:
    """Paths within the source of the files that hold a language's split; empty if there are none.

    Args:
        store: where the files are.
        source: the source.
        code: the source's language code.
        split: `test` or `examples`.
    """
    split = source.splits[split]
    names = store.names(source)
    if source.files:
        for pattern in source.files:
            wanted = pattern.format(code=code, split=split)
            if wanted in names:
                return [wanted]
        return []
    configs: Sequence[str | None] = source.configs or (
        (None,) if source.whole else (source.codes.get(code, code),)
    )
    found: list[str] = []
    for config in configs:
        listed = configured_files(store.readme(source), names, config, split)
        found += listed or find_files(names, config, split)
    return found


def available(store: Store, source: Source) -> dict[str, str]:
    """Language codes whose files all exist. Reads no files except those that hold all languages together.

    Returns:
        Code → first file of its test split.
    """
    found = {}
    if source.whole:
        files = files_of(store, source, "", "test")
        if not files:
            return {}
        groups = _groups(tuple(store.path(source, name) for name in files), source.name)
        return {code: files[0] for code in source.codes if code in groups}
    for code in source.codes:
        complete = [files_of(store, source, code, split) for split in source.splits]
        if source.pair:
            complete += [files_of(store, source, ENGLISH, split) for split in source.splits]
        if all(complete):
            found[code] = complete[0][0]
    return found


def read_rows(store: Store, source: Source, code: str, split: str) -> list[Row]:
    """Rows of a language's split, in file order.

    Raises:
        UserError: files are missing or unreadable, or lack a field.
    """
    if source.pair:
        return _parallel(store, source, code, split)
    names = files_of(store, source, code, split)
    if not names:
        raise UserError(
            f"{source.name}: no file for language {code}, split {source.splits[split]} in {store.describe(source)}; "
            + (source.obtain or "fetch it with `emma evaluate fetch`")
        )
    paths = tuple(store.path(source, name) for name in names)
    if source.whole:
        rows = _groups(paths, source.name).get(code, [])
        if not rows:
            raise UserError(f"{paths[0]}: no row with language {code} (by {source.key})")
        return rows
    return [row for path in paths for row in _checked(path, source)]


def _checked(path: Path, source: Source) -> list[Row]:
    rows = read_file(path, source.header)
    if not rows:
        raise UserError(f"{path}: contains no rows; fetch it again")
    lacking = [name for name in source.columns if name not in rows[0]]
    if lacking:
        raise UserError(
            f"{path}: no field {', '.join(lacking)}; it has {', '.join(map(str, rows[0]))}. "
            f"The benchmark reads another schema of {source.root}"
        )
    return rows


def _parallel(store: Store, source: Source, code: str, split: str) -> list[Row]:
    sides = []
    for side in (ENGLISH, code):
        names = files_of(store, source, side, split)
        if not names:
            raise UserError(
                f"{source.name}: no file {source.files[0].format(code=side, split=source.splits[split])} in "
                f"{store.describe(source)}; fetch it with `emma evaluate fetch`"
            )
        path = store.path(source, names[0])
        if path.suffix in ENDINGS:
            sides.append(
                (path, [{**row, "text": str(row["text"]).strip()} for row in _checked(path, source)])
            )
        else:
            lines = _text(path).rstrip("\n").split("\n")
            sides.append((path, [{"text": line.strip()} for line in lines]))
    (english_path, english), (path, other) = sides
    if len(english) != len(other):
        raise UserError(
            f"{path}: {len(other)} lines, but {english_path} has {len(english)}; parallel files must have the "
            "same number of lines: fetch both again"
        )
    for place, (left, right) in enumerate(zip(english, other, strict=True)):
        if left.get("id") != right.get("id"):
            raise UserError(
                f"{path}: row {place} has id {right.get('id')}, but {left.get('id')} in {english_path}; rows of parallel "
                "files must be the same sentences: fetch both again"
            )
    return [
        {**fact, **left, "source": left["text"], "target": right["text"]}
        for fact, left, right in zip(_facts(store, source, split, len(other)), english, other, strict=True)
    ]


def _facts(store: Store, source: Source, split: str, lines: int) -> list[Row]:
    """Further fields of each line of parallel files; none if the source has no such table."""
    name = (source.facts or "").format(split=source.splits[split])
    if not name or name not in store.names(source):
        return [{}] * lines
    path = store.path(source, name)
    rows = read_file(path)
    if len(rows) != lines:
        raise UserError(f"{path}: {len(rows)} rows, but the texts have {lines} lines; fetch both again")
    return rows


@functools.lru_cache(maxsize=4)
def _groups(paths: tuple[Path, ...], name: str) -> dict[str, list[Row]]:
    """Rows of files that hold all languages of a source, grouped by language."""
    source = get_source(name)
    key = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(source.key or "")
    groups: dict[str, list[Row]] = {}
    for path in paths:
        for row in _checked(path, source):
            groups.setdefault(key.render(row), []).append(row)
    return groups


def read_file(path: Path, header: Sequence[str] = ()) -> list[Row]:
    """Rows of a parquet, jsonl, json, tsv, csv or text file (text: one row per line, field `text`).

    Args:
        path: the file.
        header: column names, for a file without a header line.

    Raises:
        UserError: the file is not in the format that its extension names.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows: list[Row] = pq.read_table(path).to_pylist()
            return rows
        if path.suffix == ".jsonl":
            return [orjson.loads(line) for line in _text(path).split("\n") if line.strip()]
        if path.suffix == ".json":
            value = orjson.loads(path.read_bytes())
            return list(value.values()) if isinstance(value, dict) else list(value)
        if path.suffix in (".tsv", ".csv"):
            return _table(_text(path), "\t" if path.suffix == ".tsv" else ",", header)
    except (ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix} ({error}); fetch it again") from None
    return [{"text": line} for line in _text(path).split("\n") if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); fetch it again") from None


def _table(text: str, delimiter: str, header: Sequence[str]) -> list[Row]:
    """Rows of delimited text; quotation marks are plain text if quoting would split or join lines."""
    csv.field_size_limit(1 << 28)
    lines = [line for line in text.split("\n") if line.strip()]
    records = [record for record in csv.reader(io.StringIO(text), delimiter=delimiter) if record]
    width = len(header or records[0]) if records else 0
    if len(records) != len(lines) or any(len(record) != width for record in records):
        records = [
            record for record in csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE) if record
        ]
    names = list(header) or records.pop(0)
    # Leave out lines with another number of fields, as the authors' reader does.
    return [dict(zip(names, record, strict=True)) for record in records if len(record) == len(names)]
