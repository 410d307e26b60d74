"""Every fault planted in a mix is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.base.manifest import FileRecord
from emma.tools.mix.build import build_mix
from emma.tools.mix.index import IndexReader, index_header
from emma.tools.mix.verify import verify_mix
from tests.tiny_mix import TinyMix, make_tiny_mix
from tests.tools.mix.conftest import MakeSettings


@pytest.fixture
def broken(tiny: TinyMix) -> Path:
    """A copy of the mix beside it, so that its links still lead to the store."""
    target = tiny.mix.with_name("broken")
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(tiny.mix, target, symlinks=True))


def sign(folder: Path, path: Path) -> None:
    """Writes the file's new size and checksum into the manifest, as someone covering their tracks would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest["outputs"]:
        if record["path"] == str(path.relative_to(folder)):
            record.update(vars(FileRecord.of(path, folder)))
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


def edit_array(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "train" / name
        array = np.load(path)
        changed = change(array)
        np.save(path, array if changed is None else changed)
        sign(folder, path)

    return edit


def edit_json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        value = json.loads(path.read_text())
        change(value)
        path.write_bytes(orjson.dumps(value))
        if name != "manifest.json":
            sign(folder, path)

    return edit


def edit_row(field: str, change: Callable[[int], int], row: int = 3) -> Callable[[Path], None]:
    def edit(rows: np.ndarray) -> None:
        rows[field][row] = change(int(rows[field][row]))

    return edit_array("rows.npy", edit)


def swap_rows(rows: np.ndarray) -> None:
    # Two rows of one shard, of different lengths.
    same = np.flatnonzero(rows["shard"] == rows["shard"][0])
    other = next(index for index in same if rows["tokens"][index] != rows["tokens"][same[0]])
    rows[[same[0], other]] = rows[[other, same[0]]]


def index_of_another_type(folder: Path) -> None:
    path = folder / "train" / "monolingual-00000.idx"
    content = path.read_bytes()
    rows = IndexReader(path).rows
    path.write_bytes(index_header(np.dtype(np.int32), rows) + content[34:])
    sign(folder, path)


def index_offset(folder: Path) -> None:
    path = folder / "train" / "monolingual-00000.idx"
    content = bytearray(path.read_bytes())
    rows = IndexReader(path).rows
    content[34 + 4 * rows] ^= 2
    path.write_bytes(content)
    sign(folder, path)


def relink(folder: Path) -> None:
    link = folder / "train" / "monolingual-00000.bin"
    target = link.resolve()
    copy = target.with_name("copy.bin")
    shutil.copy(target, copy)
    link.unlink()
    link.symlink_to(copy)


def unlink(folder: Path) -> None:
    link = folder / "train" / "monolingual-00000.bin"
    link.unlink()
    link.symlink_to("nowhere.bin")


def plan_counts(folder: Path) -> None:
    path = folder / "plan.parquet"
    rows = pq.read_table(path)
    index = rows.column_names.index("built_documents")
    values = rows["built_documents"].to_pylist()
    values[0] += 1
    pq.write_table(rows.set_column(index, rows.schema.field(index), [values]), path)
    sign(folder, path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (
        lambda f: (f / "train" / "rows.npy").write_bytes(
            (f / "train" / "rows.npy").read_bytes()[:-1] + b"\x01"
        ),
        r"rows\.npy: its SHA-256 differs",
    ),
    "truncation": (
        lambda f: (f / "train" / "samples.npy").write_bytes((f / "train" / "samples.npy").read_bytes()[:-8]),
        r"samples\.npy: \d+ bytes, but the manifest says",
    ),
    "a file gone": (
        lambda f: (f / "train" / "bilingual-00000.idx").unlink(),
        r"bilingual-00000\.idx: missing",
    ),
    "a file too many": (
        lambda f: (f / "train" / "more.idx").write_bytes(b""),
        r"more\.idx: not in the manifest",
    ),
    "offset beyond the shard": (
        edit_row("offset", lambda _: 1 << 40),
        r"row 3 takes \d+ tokens at byte 1099511627776",
    ),
    "negative offset": (edit_row("offset", lambda _: -2), r"row 3 takes \d+ tokens at byte -2"),
    "offset inside a document": (
        edit_row("offset", lambda o: o + 2),
        r"row 3 is not a whole document|row 3 takes",
    ),
    "length of another document": (edit_row("tokens", lambda t: t - 1), r"row 3 is not a whole document"),
    "unknown shard": (
        edit_row("shard", lambda _: 99),
        "name shards or sources that dataset.json doesn't list",
    ),
    "another source": (
        edit_row("source", lambda s: (s + 1) % 6),
        r"row 3 counts as \w+, but its document is|rows and \d+ tokens, but dataset\.json says",
    ),
    "rows in another order than the index": (
        edit_array("rows.npy", swap_rows),
        "sample|doesn't hold the rows",
    ),
    "a row too few": (
        edit_array("rows.npy", lambda rows: rows[:-1]),
        r"rows\.npy: \d+ rows of .* dataset\.json says",
    ),
    "a shifted sample": (
        edit_array("samples.npy", lambda samples: samples.__setitem__((5, 1), samples[5, 1] + 1)),
        r"sample 5 begins at row \d+, token \d+, but 64 tokens after the one before it are row",
    ),
    "a sample too few": (edit_array("samples.npy", lambda samples: samples[:-1]), r"samples\.npy: shape"),
    "samples beyond the rows": (
        edit_array("samples.npy", lambda samples: samples.__setitem__((5, 0), 10**6)),
        r"sample 5 begins at row 1000000",
    ),
    "index of another type": (index_of_another_type, "says that tokens are int32, but they are uint16"),
    "index offset": (index_offset, "doesn't hold the rows of monolingual-00000 in their order"),
    "link to a copy": (relink, r"leads to .*copy\.bin, not to the store's"),
    "link to nothing": (unlink, "leads nowhere"),
    "another mix's dataset": (
        edit_json("train/dataset.json", lambda v: v.update(mix_fingerprint="f" * 64)),
        "belongs to another mix",
    ),
    "other sample count": (
        edit_json("mix.json", lambda v: v.update(samples=41)),
        "40 samples of 64 tokens, but mix.json promises 41",
    ),
    "label count": (
        edit_json("train/dataset.json", lambda v: v.update(label_tokens=5)),
        r"2560 labels, but dataset\.json says 5",
    ),
    "source counts": (
        edit_json("train/dataset.json", lambda v: v["sources"][0].update(tokens=5)),
        r"rows and \d+ tokens, but dataset\.json says \d+ and 5",
    ),
    "plan counts": (plan_counts, r"plan\.parquet: \S+ was planned with"),
    "stale manifest": (
        edit_json("manifest.json", lambda v: v["outputs"].pop()),
        "not in the manifest",
    ),
}


def test_a_clean_mix_passes(tiny: TinyMix) -> None:
    found = verify_mix(tiny.mix)
    assert found.faults == [] and found.notes == []
    assert found.groups == 5 and found.rows > 40


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(broken: Path, name: str) -> None:
    break_it, message = FAULTS[name]
    break_it(broken)
    faults = verify_mix(broken).faults
    assert any(re.search(message, fault) for fault in faults), faults


def test_a_mix_of_another_store_or_recipe_is_a_fault(
    make_settings: MakeSettings, tmp_path: Path, own_store: Path
) -> None:
    settings = make_settings(store=own_store)
    build_mix(settings)
    faults = verify_mix(settings.folder, fingerprint="e" * 64).faults
    assert len(faults) == 1 and "this recipe's mix would be eeeeeeeeeeee" in faults[0]
    other = make_tiny_mix(tmp_path / "other", samples=10, sequence_length=64, begin=False)
    shutil.rmtree(own_store)
    shutil.copytree(other.store, own_store)
    faults = verify_mix(settings.folder).faults
    assert any("this is another store" in fault for fault in faults)
    shutil.rmtree(own_store)
    faults = verify_mix(settings.folder).faults
    assert any("no such component of the token store" in fault for fault in faults)


def test_no_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mix\.json: no such mix; run `emma mix build` first"):
        verify_mix(tmp_path)
