"""Counts of copies travel from the corpus into the store, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.tools.pack.run import pack_store
from emma.tools.pack.store import COUNTED_SCHEMA, DOCUMENT_SCHEMA, Component, open_component
from emma.tools.pack.verify import verify_component
from tests.tiny_text import documents
from tests.tools.pack.conftest import MakeSettings


def write(path: Path, copies: list[int | str | None] | None, count: int = 60, kind: str = "int64") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "id": [f"{path.parent.name}/{number}" for number in range(count)],
            "text": [
                "" if number == 7 else f"{path.parent.name}: {text}"
                for number, text in enumerate(documents("eng_Latn", count))
            ],
            "source": ["tiny"] * count,
        }
    )
    if copies is not None:
        table = table.append_column("copies", pa.array(copies, kind))
    pq.write_table(table, path, row_group_size=16)
    return path


def store_of(make: MakeSettings, files: list[Path], store: str = "store", **pack: object) -> Component:
    settings = make(files, store, **pack)
    pack_store(settings, workers=1)
    return open_component(settings.store / "web")


def documents_of(component: Component) -> list[pa.Table]:
    return [pq.read_table(shard.documents_path) for shard in component.shards]


def test_counts_are_carried_document_by_document(tmp_path: Path, make_settings: MakeSettings) -> None:
    copies = np.random.default_rng(0).integers(1, 3_000_000_000, 60).tolist()
    file = write(tmp_path / "raw" / "eng_Latn" / "part.parquet", copies)
    plain = write(tmp_path / "plain" / "eng_Latn" / "part.parquet", None)
    component = store_of(make_settings, [file], max_tokens=20)
    (table,) = documents_of(component)
    assert table.schema == COUNTED_SCHEMA
    pieces = 0
    for name, found in zip(table["document_id"].to_pylist(), table["copies"].to_pylist(), strict=True):
        whole, _, piece = name.partition("#")
        pieces += bool(piece)
        assert found == copies[int(whole.partition("/")[2])]
    assert pieces
    assert verify_component(component.folder)[0] == []
    other = store_of(make_settings, [plain], "plain_store", max_tokens=20)
    assert documents_of(other)[0].schema == DOCUMENT_SCHEMA
    assert other.shards[0].bin_path.read_bytes() == component.shards[0].bin_path.read_bytes()
    assert documents_of(other)[0].equals(table.drop_columns(["copies"]))


def test_files_with_and_without_counts_get_shards_of_their_own(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    files = [
        write(tmp_path / "raw" / f"l{number}_Latn" / "part.parquet", copies)
        for number, copies in enumerate([None, [3] * 60, None, [None] * 59 + [2]])
    ]
    component = store_of(make_settings, files)
    assert [table.schema for table in documents_of(component)] == [DOCUMENT_SCHEMA, COUNTED_SCHEMA] * 2
    assert sum(map(len, documents_of(component))) == component.manifest.counts["kept"]
    assert verify_component(component.folder)[0] == []


def test_text_of_that_name_is_no_count_and_none_is_refused(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    file = write(tmp_path / "raw" / "eng_Latn" / "part.parquet", ["many"] * 60, kind="string")
    assert documents_of(store_of(make_settings, [file]))[0].schema == DOCUMENT_SCHEMA
    wrong = write(tmp_path / "wrong" / "eng_Latn" / "part.parquet", [1] * 40 + [0] + [1] * 19)
    with pytest.raises(UserError, match="row 40 has copies 0"):
        store_of(make_settings, [wrong], "wrong_store")
