"""Files of raw text: what is written is read back, and the same records give the same bytes."""

import csv
import gzip
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyarrow.parquet as pq
import zstandard

from benchmarks.demo_text.records import write_csv_gz, write_jsonl, write_moses, write_parquet, write_tmx

RECORDS = [{"id": "1", "text": 'Quote "q",\nsecond line, ክብር'}, {"id": "2", "text": "<b>"}]


def test_jsonl_zst_and_gz(tmp_path: Path) -> None:
    for name in ("a.jsonl.zst", "a.jsonl.gz"):
        write_jsonl(tmp_path / name, RECORDS)
    packed = (tmp_path / "a.jsonl.zst").read_bytes()
    lines = zstandard.ZstdDecompressor().decompress(packed).splitlines()
    assert [json.loads(line) for line in lines] == RECORDS
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines() == lines
    write_jsonl(tmp_path / "b.jsonl.gz", RECORDS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_csv_and_parquet(tmp_path: Path) -> None:
    write_csv_gz(tmp_path / "a.csv.gz", RECORDS)
    text = gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).decode()
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == RECORDS
    write_parquet(tmp_path / "a.parquet", RECORDS)
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == RECORDS


def test_tmx_and_moses(tmp_path: Path) -> None:
    pairs = [("R&D <x>", "F&E"), ("two", "zwei")]
    write_tmx(tmp_path / "a.tmx.gz", ("en", "de"), pairs, source="test")
    root = ElementTree.fromstring(gzip.decompress((tmp_path / "a.tmx.gz").read_bytes()))
    assert [tuple(seg.text for seg in tu.iter("seg")) for tu in root.iter("tu")] == pairs
    left, right = write_moses(tmp_path / "a.en-de", ("en", "de"), pairs)
    assert (left.name, right.name) == ("a.en-de.en.gz", "a.en-de.de.gz")
    assert gzip.decompress(right.read_bytes()).decode() == "F&E\nzwei\n"
