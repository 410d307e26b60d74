"""How many records input files hold, before they are read: from parquet's metadata, and by counting lines."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.tools.pack.inputs import InputFile

__all__ = ["count_records"]

# Looked at, of each kind: this many files, and this many bytes of lines, in small blocks spread evenly. These 1,024 blocks
# gave the number of documents of 160, 320 and 640 MB to 1 %, a fifth of what the plan allows for.
_FILES = 1024
_BYTES = 64 << 20
_BLOCK = 64 << 10


def count_records(files: Sequence[InputFile]) -> int | None:
    """Records of files: exact, blank lines apart, for 1,024 files with 64 MiB of lines; of more, by what so many hold.

    Returns:
        None where there are files of other kinds, whose records are not known until they are read.

    Raises:
        OSError: a file cannot be read.
    """
    records = 0.0
    for kind in {file.kind for file in files}:
        if kind not in ("jsonl", "parquet"):
            return None
        own = [file for file in files if file.kind == kind]
        some = own[:: -(-len(own) // _FILES)]
        share = (_lines_a_byte if kind == "jsonl" else _rows_a_byte)(some)
        records += share * sum(file.bytes for file in own)
    return round(records)


def _rows_a_byte(files: Sequence[InputFile]) -> float:
    rows = 0
    for file in files:
        with pa.OSFile(file.path) as source:
            rows += pq.read_metadata(source).num_rows
    return rows / sum(file.bytes for file in files)


def _lines_a_byte(files: Sequence[InputFile]) -> float:
    """Of blocks at equal distances in the files, taken as one after another."""
    gap = _BLOCK * (-(-sum(file.bytes for file in files) // _BYTES) - 1)
    buffer = np.empty(_BLOCK, np.uint8)
    lines = seen = skip = 0
    left = _BLOCK
    for file in files:
        position = min(skip, file.bytes)
        skip -= position
        if position == file.bytes:
            continue
        with open(file.path, "rb", buffering=0) as stream:  # noqa: PTH123 - there may be many
            # A file that grows meanwhile is counted as it was listed.
            while size := os.preadv(stream.fileno(), [buffer[: min(left, file.bytes - position)]], position):
                lines += int(np.count_nonzero(buffer[:size] == ord("\n")))
                seen, left, position = seen + size, left - size, position + size
                if not left:
                    left = _BLOCK
                    skip = max(0, position + gap - file.bytes)
                    position += gap - skip
    return lines / max(seen, 1)
