"""Every fault planted in a store is found; a clean store passes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.tools.pack import unit
from emma.tools.pack.run import pack_store
from emma.tools.pack.verify import verify_component
from tests.tiny_text import documents
from tests.tools.pack.conftest import MakeSettings


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A component of several shards."""
    from emma.recipes.schema.data import Pack
    from emma.recipes.schema.model import Tokenizer
    from emma.tools.pack.plan import PackSettings
    from emma.tools.pack.tokenizer_file import TokenizerFile
    from tests.tiny_text import BEGIN, END, train_tokenizer

    root = tmp_path_factory.mktemp("store")
    for language in ("eng_Latn", "hin_Deva"):
        folder = root / "raw" / language
        folder.mkdir(parents=True)
        rows = [{"id": f"{language}{i}", "text": text} for i, text in enumerate(documents(language, 40))]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack = Pack.model_validate(
        {"components": {"web": {"inputs": [str(root / "raw")]}}, "engine": "tokenizers"}
    )
    file = TokenizerFile(
        Tokenizer(path=str(train_tokenizer(root / "tokenizer")), begin_of_text=BEGIN, end_of_text=END), 512
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit._UnitWriter, "shard_bytes", 4000)
        pack_store(PackSettings(pack, file, root, root / "store", "0" * 64), workers=1)
    return root / "store" / "web"


@pytest.fixture
def store(clean: Path, tmp_path: Path) -> Path:
    """A copy for tests to corrupt."""
    return Path(shutil.copytree(clean, tmp_path / "web"))


def edit_manifest(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = store / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(orjson.dumps(value))


def edit_bin(store: Path, change: Callable[[np.ndarray], np.ndarray | None], number: int = 1) -> None:
    path = store / f"shard-{number:05d}.bin"
    tokens = np.fromfile(path, np.uint16)
    changed = change(tokens)
    (tokens if changed is None else changed).tofile(path)


def edit_documents(store: Path, column: str, change: Callable[[list[Any]], None], number: int = 1) -> None:
    path = store / f"documents-{number:05d}.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    change(values)
    index = table.column_names.index(column)
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type)),
        path,
    )


def flip_bit(store: Path) -> None:
    path = store / "shard-00001.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def truncate(store: Path) -> None:
    path = store / "shard-00001.bin"
    path.write_bytes(path.read_bytes()[:-2])


def damage_documents(store: Path) -> None:
    path = store / "documents-00001.parquet"
    path.write_bytes(bytes(path.stat().st_size))


def swap(values: list[Any]) -> None:
    values[1], values[2] = values[2], values[1]


def put(values: Any, index: int, value: Any) -> None:
    values[index] = value


def duplicate(store: Path) -> None:
    for name in ("shard-00001.bin", "documents-00001.parquet"):
        shutil.copy(store / name, store / name.replace("1", "2"))

    def change(value: dict[str, Any]) -> None:
        outputs = {record["path"]: record for record in value["outputs"]}
        for name in ("shard-00001.bin", "documents-00001.parquet"):
            other = outputs[name.replace("1", "2")]
            other.update(bytes=outputs[name]["bytes"], checksum=outputs[name]["checksum"])
        value["extra"]["shards"][2] = value["extra"]["shards"][1]

    edit_manifest(store, change)


def stale(store: Path) -> None:
    edit_manifest(store, lambda value: value["outputs"].pop(2) and None)


def source_counts(store: Path) -> None:
    table = pq.read_table(store / "sources.parquet")
    index = table.column_names.index("tokens")
    pq.write_table(
        table.set_column(index, table.schema.field(index), pc.add(table["tokens"], 1)),
        store / "sources.parquet",
    )


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (flip_bit, r"shard-00001\.bin: its SHA-256 differs"),
    "truncated shard": (truncate, r"shard-00001\.bin: \d+ bytes, but the manifest says \d+"),
    "shard gone": (lambda s: (s / "shard-00001.bin").unlink(), r"shard-00001\.bin: missing"),
    "swapped offsets": (
        lambda s: edit_documents(s, "offset", swap),
        r"documents-00001\.parquet: row 1 begins at byte",
    ),
    "swapped lengths": (
        lambda s: edit_documents(s, "tokens", swap),
        r"documents-00001\.parquet: row \d+ begins at byte",
    ),
    "row numbers": (lambda s: edit_documents(s, "row", swap), "`row` doesn't count from 0"),
    "another component": (
        lambda s: edit_documents(s, "component", lambda v: put(v, 3, "books")),
        "belong to another component",
    ),
    "unknown split": (
        lambda s: edit_documents(s, "split", lambda v: put(v, 3, "dev")),
        "have the split 'dev'",
    ),
    "a split that moved": (
        lambda s: edit_documents(s, "split", lambda v: put(v, 3, "validation")),
        r"sources\.parquet: eng_Latn/train has .* but the shards hold",
    ),
    "id at the vocabulary": (
        lambda s: edit_bin(s, lambda t: put(t, 20, 512)),
        r"shard-00001\.bin: document 0 holds the id 512, but the vocabulary has 512",
    ),
    "no end of text": (
        lambda s: edit_bin(s, lambda t: put(t, -1, 40)),
        r"document \d+ has 40 for end of text \(511\)",
    ),
    "no begin of text": (
        lambda s: edit_bin(s, lambda t: put(t, 0, 40)),
        r"document 0 has 40 for begin of text \(510\)",
    ),
    "end of text inside": (
        lambda s: edit_bin(s, lambda t: put(t, 5, 511)),
        r"hold \d+ tokens for end of text, but one per document would be \d+",
    ),
    "wrong type": (
        lambda s: edit_manifest(s, lambda v: v["extra"].update(dtype="int32")),
        "tokens are int32, but a vocabulary of 512 is stored as uint16",
    ),
    "shard in another type": (
        lambda s: edit_bin(s, lambda t: t.astype(np.int32).view(np.uint16)),
        r"shard-00001\.bin: \d+ bytes, but the manifest says",
    ),
    "duplicated shard": (duplicate, r"shard-00002\.bin: has the same content as shard-00001\.bin"),
    "a file too many": (
        lambda s: shutil.copy(s / "shard-00001.bin", s / "shard-00099.bin"),
        r"shard-00099\.bin: not in the manifest",
    ),
    "stale manifest": (stale, "its outputs and its shards disagree about"),
    "edited counts": (
        lambda s: edit_manifest(s, lambda v: v["counts"].update(tokens=1)),
        r"manifest\.json: counts \d+ documents and 1 tokens",
    ),
    "edited checksum": (
        lambda s: edit_manifest(s, lambda v: v["outputs"][0].update(checksum="sha256:0")),
        "its fingerprint isn't that of its outputs",
    ),
    "source counts": (source_counts, r"sources\.parquet: eng_Latn/train has"),
    "cut documents": (
        lambda s: (s / "documents-00001.parquet").write_bytes(b"PAR1"),
        r"documents-00001\.parquet: 4 bytes, but the manifest says",
    ),
    "damaged documents": (damage_documents, r"documents-00001\.parquet: cannot be read"),
}


def test_a_clean_store_passes(clean: Path) -> None:
    faults, seen = verify_component(clean, workers=1)
    assert faults == []
    assert seen["documents"] == 80 and seen["shards"] > 3


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(store: Path, name: str) -> None:
    break_it, message = FAULTS[name]
    break_it(store)
    faults, _ = verify_component(store, workers=1)
    assert any(_matches(message, fault) for fault in faults), faults


@pytest.mark.parametrize(
    "name", ["id at the vocabulary", "no end of text", "end of text inside", "swapped offsets"]
)
def test_rules_are_checked_without_checksums_too(store: Path, name: str) -> None:
    break_it, message = FAULTS[name]
    break_it(store)
    faults, _ = verify_component(store, checksums=False, workers=1)
    assert any(_matches(message, fault) for fault in faults), faults


def _matches(message: str, fault: str) -> bool:
    return re.search(message, fault) is not None


@pytest.mark.parametrize("name", ["shard-00001.bin", "documents-00001.parquet"])
def test_a_cut_file_is_the_first_fault_and_what_follows_is_one_line(name: str, store: Path) -> None:
    (store / name).write_bytes((store / name).read_bytes()[:1000])
    faults, _ = verify_component(store, workers=1)
    assert len(faults) == 2
    assert faults[0].startswith(f"{store / name}: 1000 bytes, but the manifest says ")
    assert re.search(r": \d+ counts of .* cannot hold while 1 of \d+ shards are not whole\. Fix: ", faults[1])
    assert faults[1].startswith(str(store))


def test_an_unfinished_component_is_refused(tmp_path: Path, make_settings: MakeSettings) -> None:
    with pytest.raises(UserError, match="no such component of the token store"):
        verify_component(tmp_path / "web")
    path = tmp_path / "raw" / "eng_Latn" / "a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "some words"}\n')
    settings = make_settings([path])
    pack_store(settings, workers=1, shard=(0, 1))
    with pytest.raises(
        UserError, match=r"manifest\.json: missing, so the stage that writes .* has not finished"
    ):
        verify_component(settings.store / "web")
