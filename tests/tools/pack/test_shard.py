from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.tools.pack import shard
from emma.tools.pack.shard import ShardWriter

END, DOCUMENTS = 2, 37


def written(folder: Path, cuts: list[int]) -> tuple[bytes, bytes]:
    """Tokens and table of a shard whose documents come in batches that end at `cuts`."""
    folder.mkdir()
    writer = ShardWriter(folder, 0, "web", np.dtype(np.int32), None, END)
    lengths = np.arange(DOCUMENTS) % 5 + 1
    tokens = np.arange(lengths.sum(), dtype=np.int32) + 10
    ends = np.cumsum(lengths)
    tokens[ends - 1] = END
    text = pa.large_string()
    table = pa.table(
        {
            "language": pa.array([f"l{n % 3}" for n in range(DOCUMENTS)], text),
            "source": pa.array(["s"] * DOCUMENTS, text),
            "document_id": pa.array([f"d{n}" for n in range(DOCUMENTS)], text),
            "split": pa.array(["train"] * DOCUMENTS, text),
        }
    )
    for start, stop in zip([0, *cuts], [*cuts, DOCUMENTS], strict=True):
        first = ends[start - 1] if start else 0
        part = slice(start, stop)
        writer.append(
            tokens[first : ends[stop - 1]], lengths[part], table.slice(start, stop - start), lengths[part] * 3
        )
    report = writer.close()
    assert (report["rows"], report["bytes"]) == (DOCUMENTS, 4 * len(tokens))
    found = pq.read_table(writer.documents_path)
    assert found["row"].to_pylist() == list(range(DOCUMENTS))
    assert found["offset"].to_pylist() == (4 * (ends - lengths)).tolist()
    assert found["tokens"].to_pylist() == lengths.tolist()
    assert found["bytes"].to_pylist() == (lengths * 3).tolist()
    assert found["document_id"].to_pylist() == table["document_id"].to_pylist()
    metadata = pq.read_metadata(writer.documents_path)
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [10, 10, 10, 7]
    return writer.bin_path.read_bytes(), writer.documents_path.read_bytes()


def test_the_bytes_of_a_shard_do_not_depend_on_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_ROW_GROUP", 10)
    whole = written(tmp_path / "whole", [])
    for number, cuts in enumerate([[1], [10], [3, 9, 11, 36], [9, 34], list(range(1, DOCUMENTS))]):
        assert written(tmp_path / str(number), cuts) == whole
