from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.mix.index import IndexReader, IndexWriter


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("pieces", [[5], [1, 3, 1], [0, 5, 0]])
def test_an_index_reads_back(tmp_path: Path, dtype: type, pieces: list[int]) -> None:
    rng = np.random.default_rng(0)
    lengths, offsets = rng.integers(1, 100, 5).astype(np.int32), rng.integers(0, 1 << 40, 5)
    path = tmp_path / "a.idx"
    writer = IndexWriter(path, np.dtype(dtype), 5)
    at = 0
    for count in pieces:
        writer.put(at, lengths[at : at + count], offsets[at : at + count])
        at += count
    writer.close()
    index = IndexReader(path)
    assert (index.dtype, index.rows) == (np.dtype(dtype), 5)
    assert np.array_equal(index.lengths(0, 5), lengths) and np.array_equal(index.offsets(1, 4), offsets[1:4])
    assert index.boundaries(0, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_an_incomplete_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.idx"
    writer = IndexWriter(path, np.dtype(np.int32), 2)
    writer.put(0, np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="1 rows written, but 2 announced"):
        writer.close()
    with pytest.raises(UserError, match="its size does not match its header"):
        IndexReader(path)
    (tmp_path / "b.idx").write_bytes(b"MMIDIDX")
    with pytest.raises(UserError, match="not a Megatron index"):
        IndexReader(tmp_path / "b.idx")
