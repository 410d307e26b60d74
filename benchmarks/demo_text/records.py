"""Records of raw text and the files that hold them, in the formats that real corpora come in.

Every writer is deterministic: the same records give the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from emma.base.files import atomic_write

__all__ = ["Pair", "write_csv_gz", "write_jsonl", "write_moses", "write_parquet", "write_tmx"]

Pair = tuple[str, str]
"""A segment and its translation."""


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line; `.zst` or `.gz` in the name chooses the compression."""
    _write(path, b"".join(orjson.dumps(record) + b"\n" for record in records))


def write_csv_gz(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Comma-separated with a header line, gzip-compressed; fields may hold line breaks, quoted."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    _write(path, text.getvalue().encode())


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One row per record, zstd-compressed."""
    with atomic_write(path) as handle:
        pq.write_table(pa.Table.from_pylist(list(records)), handle, compression="zstd", compression_level=19)


def write_tmx(path: Path, languages: Pair, pairs: Iterable[Pair], *, source: str) -> None:
    """Translation Memory eXchange 1.4: one `<tu>` per pair, one `<tuv xml:lang>` per side; `.gz` is compressed."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<tmx version="1.4">',
        f'<header creationtool={quoteattr(source)} creationtoolversion="1" segtype="phrase" o-tmf="gettext" '
        f'adminlang="en" srclang={quoteattr(languages[0])} datatype="plaintext"/>',
        "<body>",
    ]
    for pair in pairs:
        sides = "".join(
            f"<tuv xml:lang={quoteattr(language)}><seg>{escape(text)}</seg></tuv>"
            for language, text in zip(languages, pair, strict=True)
        )
        lines.append(f"<tu>{sides}</tu>")
    _write(path, "\n".join([*lines, "</body>", "</tmx>", ""]).encode())


def write_moses(stem: Path, languages: Pair, pairs: Sequence[Pair]) -> list[Path]:
    """Two files `<stem>.<language>.gz` with as many lines each, one segment per line; returns their paths."""
    paths = [stem.with_name(f"{stem.name}.{language}.gz") for language in languages]
    for side, path in enumerate(paths):
        _write(path, "".join(pair[side] + "\n" for pair in pairs).encode())
    return paths


def _write(path: Path, content: bytes) -> None:
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(content)
    elif path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=9, mtime=0)
    with atomic_write(path) as handle:
        handle.write(content)
