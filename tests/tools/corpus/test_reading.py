from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Source
from emma.tools.corpus.reading import Fault, Row, read_rows
from emma.tools.corpus.source_files import SourceFile
from emma.tools.corpus.streams import lines, open_bytes

_LIMIT = 1 << 20
COMPRESSORS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def read(path: Path, limit: int = _LIMIT, target: Path | None = None, **settings: Any) -> list[Row | Fault]:
    """All rows of one file."""
    settings.setdefault("kind", "monolingual")
    if settings["kind"] == "parallel":
        if not str(path).endswith(("tmx", "tmx.gz")):
            settings.setdefault("src_lang", "en")
            settings.setdefault("tgt_lang", "de")
    else:
        settings.setdefault("language", "en")
    if target is not None:
        settings["target_path"] = str(target)
    source = Source(path=str(path), license="CC0-1.0", **settings)
    file = SourceFile("source", 0, str(path), None if target is None else str(target), path.name, {})
    return list(read_rows(file, source, limit))


def texts(rows: list[Row | Fault], column: str = "text") -> list[str]:
    """Values of a column; rows that are faults are refused."""
    return [row.values[column] for row in rows if isinstance(row, Row) or pytest.fail(str(row))]


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("a.jsonl", '{"text": "één"}\n\n{"text": "two\\nlines", "x": 1}', {}),
        ("a.csv", 'n,text\n1,één\n2,"two\nlines"\n', {}),
        ("a.tsv", "één\ntwo\nlines\n".replace("two\nlines", "two\\nlines"), {"columns": ["text"]}),
    ],
)
def test_formats_and_compressions(
    tmp_path: Path, ending: str, name: str, content: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESSORS[ending](content.encode()))
    assert [text.replace("\\n", "\n") for text in texts(read(path, **settings))] == ["één", "two\nlines"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None], "other": [1, 2]}), tmp_path / "a.parquet")
    assert texts(read(tmp_path / "a.parquet")) == ["one", None]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("file", ["a\nb\n\n\nc\n"]), ("line", ["a", "b", "c"]), ("block", ["a\nb", "c"])],
)
def test_plain_text(tmp_path: Path, unit: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa\nb\n\n\nc\n")
    assert texts(read(tmp_path / "a.txt", text_unit=unit)) == expected


def test_moses(tmp_path: Path) -> None:
    (tmp_path / "c.en").write_text("one\ntwo\n")
    (tmp_path / "c.de.gz").write_bytes(gzip.compress(b"eins\nzwei"))
    rows = read(tmp_path / "c.en", target=tmp_path / "c.de.gz", kind="parallel")
    assert texts(rows, "src_text") == ["one", "two"]
    assert texts(rows, "tgt_text") == ["eins", "zwei"]


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en" datatype="plaintext"/><body>
<tu><tuv xml:lang="de"><seg>Hallo <bpt i="1"/>Welt</seg></tuv><tuv xml:lang="EN"><seg>Hello world</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>a</seg></tuv><tuv xml:lang="fr"><seg>b</seg></tuv><tuv lang="it"><seg>c</seg></tuv></tu>
</body></tmx>"""


def test_tmx(tmp_path: Path) -> None:
    (tmp_path / "a.tmx.gz").write_bytes(gzip.compress(TMX.encode()))
    rows = read(tmp_path / "a.tmx.gz", kind="parallel")
    found = [tuple(row.values.values()) for row in rows if isinstance(row, Row)]
    assert found == [
        ("EN", "Hello world", "de", "Hallo Welt"),
        ("en", "a", "fr", "b"),
        ("en", "a", "it", "c"),
    ]


# What cannot be read as a whole: one message with the file and, where there is one, the line.


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
def test_cut_compressed_file(tmp_path: Path, ending: str) -> None:
    content = b"".join(b'{"text": "%d some text"}\n' % number for number in range(20_000))
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESSORS[ending](content)[:-30])
    with pytest.raises(UserError, match=rf"{path.name}.*truncated or damaged"):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
def test_name_that_lies_about_compression(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(UserError, match="but is something else"):
        read(path)


def test_several_zstd_frames(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(b'{"text": "one"}\n') + compress(b'{"text": "two"}\n'))
    assert texts(read(tmp_path / "a.jsonl.zst")) == ["one", "two"]


def test_missing_csv_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    with pytest.raises(UserError, match=r"a\.csv: line 1: no column `text`; it has `id`, `body`"):
        read(tmp_path / "a.csv")


def test_missing_parquet_column_and_broken_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column `text`"):
        read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"b\.parquet: not a readable parquet file"):
        read(tmp_path / "b.parquet")


def test_moses_sides_of_different_length(tmp_path: Path) -> None:
    (tmp_path / "c.en").write_text("one\ntwo\n")
    (tmp_path / "c.de").write_text("eins\n")
    with pytest.raises(UserError, match=r"c\.de: ends at line 1, but .*c\.en continues"):
        read(tmp_path / "c.en", target=tmp_path / "c.de", kind="parallel")


def test_cut_tmx(tmp_path: Path) -> None:
    (tmp_path / "a.tmx").write_text(TMX[: TMX.index("</body>")])
    with pytest.raises(UserError, match=r"a\.tmx: line \d+, column \d+: not valid XML"):
        read(tmp_path / "a.tmx", kind="parallel")
    (tmp_path / "b.tmx").write_text("<tmx/>")
    with pytest.raises(UserError, match="no translation unit"):
        read(tmp_path / "b.tmx", kind="parallel")


# Rows that cannot be used: faults with line and reason; the others are read.


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not valid JSON"),
        (b'["text"]', "not an object"),
        (b'{"Text": "x"}', "no key `text` (its keys: Text)"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 11 (ff)"),
    ],
)
def test_bad_json_line(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n')
    first, fault, last = read(tmp_path / "a.jsonl")
    assert isinstance(fault, Fault)
    assert (fault.number, fault.oversized) == (2, False)
    assert reason in fault.reason
    assert texts([first, last]) == ["one", "three"]


def test_bad_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one\n2,a,b\n3,\xff\n4,four\n")
    rows = read(tmp_path / "a.csv")
    assert [type(row) for row in rows] == [Row, Fault, Fault, Row]
    assert [row.reason for row in rows if isinstance(row, Fault)] == [
        "3 fields for 2 columns",
        "invalid UTF-8 in `text`",
    ]


def test_unclosed_quotation_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"never closed\n' + "2,more and more text\n" * 2000)
    rows = read(tmp_path / "a.csv", limit=1000)
    assert any(isinstance(row, Fault) and "unclosed" in row.reason for row in rows)


def test_bad_utf8_in_text_and_moses(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xe9\n")
    first, fault = read(tmp_path / "a.txt", text_unit="line")
    assert isinstance(first, Row)
    assert isinstance(fault, Fault)
    assert (fault.number, fault.reason) == (2, "invalid UTF-8 at byte 5 (e9)")
    (tmp_path / "c.en").write_bytes(b"one\ntwo\n")
    (tmp_path / "c.de").write_bytes(b"eins\n\xff\n")
    rows = read(tmp_path / "c.en", target=tmp_path / "c.de", kind="parallel")
    assert isinstance(rows[1], Fault)
    assert "c.de" in rows[1].reason


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": "' + b"x" * 50_000 + b'"}\n{"text": "three"}', {}),
        ("a.csv", b"text\none\n" + b"x" * 50_000 + b"\nthree\n", {}),
        ("a.tsv", b"one\n" + b"x" * 50_000 + b"\nthree\n", {"columns": ["text"]}),
        ("a.txt", b"one\n" + b"x" * 50_000 + b"\nthree\n", {"text_unit": "line"}),
        ("a.txt", b"one\n\n" + b"x" * 50_000 + b"\n\nthree\n", {"text_unit": "block"}),
    ],
)
def test_a_line_longer_than_the_limit(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, Any]
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = read(tmp_path / name, limit=5000, **settings)
    assert [isinstance(row, Fault) and row.oversized for row in rows].count(True) == 1
    assert texts([row for row in rows if isinstance(row, Row)]) == ["one", "three"]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_limit_is_of_a_line_without_its_end(tmp_path: Path, end: bytes) -> None:
    limit = 3 << 20  # several pieces
    for size in (limit, limit + 1):
        (tmp_path / "a").write_bytes(b"x" * size + end)
        with open_bytes(str(tmp_path / "a")) as stream:
            ((number, line),) = lines(stream, limit)
        assert number == 1
        assert line == (b"x" * size if size == limit else size + len(end))


def test_a_file_without_an_end_of_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 300_000)
    (fault,) = read(tmp_path / "a.jsonl", limit=5000)
    assert isinstance(fault, Fault)
    assert fault.oversized
    assert "300,000 bytes" in fault.reason
