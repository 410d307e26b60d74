from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.manifest import FileRecord
from emma.tools.pack.bad_lines import BadLines
from emma.tools.pack.inputs import InputFile, Segment, cut_units, list_inputs
from emma.tools.pack.records import read_heads, read_segment, read_segments

RECORDS = [{"id": f"d{number}", "text": f"line {number} é世\n" * (number % 5 + 1)} for number in range(60)]


def write_jsonl(path: Path, *, last_newline: bool = True) -> Path:
    text = "\n".join(
        json.dumps(record, ensure_ascii=number % 2 == 0) for number, record in enumerate(RECORDS)
    )
    path.write_text(text + ("\n" if last_newline else ""), encoding="utf-8")
    return path


def whole(path: Path) -> Segment:
    (unit,) = cut_units(list_inputs([path]), 1 << 30)
    return unit.segments[0]


def read(
    segment: Segment, batch_bytes: int = 1 << 20, optional: tuple[str, ...] = ("id",)
) -> list[dict[str, str]]:
    batches = list(read_segment(segment, ("text",), optional, batch_bytes=batch_bytes))
    return [row for batch in batches for row in batch.table.to_pylist()]


@pytest.mark.parametrize("last_newline", [True, False])
@pytest.mark.parametrize("batch_bytes", [16, 100, 1 << 20])
def test_every_line_is_read_once_wherever_a_file_is_cut(
    tmp_path: Path, last_newline: bool, batch_bytes: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", last_newline=last_newline)
    file = list_inputs([path])[0]
    for step in (1, 37, 60, 61, 500, file.bytes):
        cuts = [*range(0, file.bytes, step), file.bytes]
        if step == 1:
            cuts = [0, *range(100, 220), file.bytes]
        rows = []
        for start, stop in itertools.pairwise(cuts):
            rows += read(Segment(file, start, stop), batch_bytes)
        assert rows == RECORDS, step


def test_formats_hold_the_same_records(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    half = len(plain.read_bytes()) // 2
    frames = [
        zstandard.ZstdCompressor().compress(part)
        for part in (plain.read_bytes()[:half], plain.read_bytes()[half:])
    ]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "d.parquet", row_group_size=7)
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        for batch_bytes in (50, 1 << 20):
            assert read(whole(tmp_path / name), batch_bytes) == RECORDS, name


def test_blank_lines_windows_line_ends_numbers_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"id": 7, "text": "a"}\r\n   \n{"id": null, "text": null, "other": [1]}\n')
    rows = read(whole(path))
    assert rows == [{"text": "a", "id": "7"}, {"text": None, "id": None}]
    (batch,) = read_segment(whole(path), ("text",), ("id",))
    assert [batch.place(row) for row in range(2)] == ["a.jsonl@1", "a.jsonl@29"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', r"a\.jsonl:4: not valid JSON"),
        ('"text"', r"a\.jsonl:4: expected an object with fields, found a str"),
        ('{"body": "x"}', r"a\.jsonl:4: lacks the field 'text'; its fields are body"),
        ('{"text": ["x"]}', r"a\.jsonl:4: field 'text' is a list, expected text"),
        ('{"text": "x", "id": {"a": 1}}', r"a\.jsonl:4: field 'id' is a dict, expected text"),
        ('{"text": "\\ud800"}', r"a\.jsonl:4: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{{"text": "b"}}\n{line}\n{{"text": "c"}}\n')
    with pytest.raises(UserError, match=message):
        read(whole(path))
    # The number is that of the file, also in a later segment of it.
    file = list_inputs([path])[0]
    with pytest.raises(UserError, match=message):
        read(Segment(file, 14, file.bytes))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl").read_bytes()
    packed = gzip.compress(plain)
    (tmp_path / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: its compressed data is truncated or damaged"):
        read(whole(tmp_path / "b.jsonl.gz"))
    (tmp_path / "c.jsonl.zst").write_bytes(b"not zstandard")
    with pytest.raises(UserError, match=r"c\.jsonl\.zst: named \.zst, but is something else"):
        read(whole(tmp_path / "c.jsonl.zst"))
    packed = zstandard.ZstdCompressor().compress(plain)
    (tmp_path / "d.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"d\.jsonl\.zst: its compressed data is truncated or damaged"):
        read(whole(tmp_path / "d.jsonl.zst"))
    with pytest.raises(UserError, match=r"gone\.parquet: cannot be read as parquet"):
        read(Segment(InputFile(str(tmp_path / "gone.parquet"), 1, 0), 0, 1))


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: lacks the column 'text'; it has body"):
        read(whole(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: column 'text' is list<.*>, expected text"):
        read(whole(tmp_path / "b.parquet"))
    dictionary = pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()})
    pq.write_table(dictionary, tmp_path / "c.parquet")
    assert [row["text"] for row in read(whole(tmp_path / "c.parquet"))] == ["x", "y", "x"]


def varied_tables(folder: Path) -> list[Segment]:
    """Small files of pairs whose tables differ in types, missing values, row groups and text that is no UTF-8."""
    generator = np.random.default_rng(0)
    for number in range(60):
        count = int(generator.integers(17, 60))
        columns = {
            name: pa.array([f"{name} {number} {'x' * int(generator.integers(40))}" for _ in range(count)])
            for name in ("src_text", "tgt_text", "id", "split")
        }
        kind = number % 8
        if kind == 1:
            columns["id"] = columns["id"].cast(pa.large_string())
        if kind == 2:
            columns["split"] = columns["split"].dictionary_encode()
        if kind == 3:
            columns["split"] = pa.array([None if row % 3 else "train" for row in range(count)])
        if kind == 4:
            bytes_ = pa.array([b"\xff" if row == 5 else b"good" for row in range(count)])
            columns["src_text"] = pa.Array.from_buffers(pa.string(), count, bytes_.buffers())
        schema = pa.schema([pa.field(name, each.type, kind != 5) for name, each in columns.items()])
        path = folder / f"{number:02d}.parquet"
        pq.write_table(pa.table(columns, schema=schema), path, row_group_size=16 if kind == 6 else 1000)
    return [segment for unit in cut_units(list_inputs([folder]), 1 << 30) for segment in unit.segments]


def test_small_tables_are_batched_as_if_each_were_turned_into_large_strings_by_itself(tmp_path: Path) -> None:
    segments = varied_tables(tmp_path)
    fields, limit = (("src_text", "tgt_text"), ("id", "split")), 40_000
    expected: list[list[dict[str, str]]] = []
    size = limit + 1
    for segment in segments:
        for batch in read_segment(segment, *fields, batch_bytes=limit, bad=BadLines(1.0)):
            assert set(batch.table.schema.types) == {pa.large_string()}
            if size + batch.table.nbytes > limit:
                expected.append([])
                size = 0
            expected[-1] += batch.table.to_pylist()
            size += batch.table.nbytes
    bad, records = BadLines(1.0), list[FileRecord]()
    found = list(read_segments(segments, *fields, batch_bytes=limit, bad=bad, records=records))
    assert [batch.table.to_pylist() for batch in found] == expected and len(expected) > 5
    assert all(set(batch.table.schema.types) == {pa.large_string()} for batch in found)
    assert [each["line"] for each in bad.found] == [5] * 7
    assert bad.records == sum(map(len, expected))
    assert [record.checksum for record in records] == [
        f"sha256:{sha256_file(Path(segment.file.path))}" for segment in segments
    ]
    last = found[-1]
    assert last.place(len(last.table) - 1) == f"59.parquet@{last.pieces[-1].rows - 1}"


def test_heads_are_the_first_records_of_each_segment(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 500), ("c", 4)):
        rows = [{"text": f"{name} {row}"} for row in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"text": [f"d {row}" for row in range(900)]}), tmp_path / "d.parquet")
    segments = [whole(path) for path in sorted(tmp_path.iterdir())]
    found = [
        row
        for batch in read_heads(segments, ("text",), (), bytes_each=1000)
        for row in batch.table["text"].to_pylist()
    ]
    counts = Counter(text[0] for text in found)
    assert counts["a"] == 3 and counts["c"] == 4 and 20 < counts["b"] < 100 and 16 <= counts["d"] < 200
    assert [text for text in found if text[0] == "b"] == [f"b {row}" for row in range(counts["b"])]
