from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from emma.base.errors import UserError
from emma.tools.pack import inputs
from emma.tools.pack.inputs import InputFile, Unit, cut_units, exceed, list_inputs

LINE = b'{"text": "x"}\n'
CONTENT = {
    "jsonl": LINE,
    "jsonl.gz": gzip.compress(LINE),
    "jsonl.zst": zstandard.ZstdCompressor().compress(LINE),
    "parquet": b"PAR1",
    "txt": b"notes",
}


def test_folders_patterns_and_files_are_listed_once_and_sorted(tmp_path: Path) -> None:
    for name in (
        "b/x.jsonl",
        "a/y.jsonl.gz",
        "a/z.parquet",
        "a/notes.txt",
        "a/.hidden.jsonl",
        "c/w.jsonl.zst",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT[name.partition(".")[2].removeprefix("hidden.")])
    found = list_inputs([tmp_path, f"{tmp_path}/*/x.jsonl", tmp_path / "b" / "x.jsonl"])
    assert [Path(file.path).name for file in found] == [
        "notes.txt",
        "y.jsonl.gz",
        "z.parquet",
        "x.jsonl",
        "w.jsonl.zst",
    ]
    assert [file.kind for file in found] == ["text", "jsonl.gz", "parquet", "jsonl", "jsonl.zst"]
    assert found[0].folder == "a"


def test_what_is_not_there_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no input there"):
        list_inputs([tmp_path / "*.jsonl"])
    (tmp_path / "text.md").write_text("a")
    with pytest.raises(UserError, match=r"text\.md: cannot read this format: plain text whose name"):
        list_inputs([tmp_path / "text.md"])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 not whole")
    with pytest.raises(UserError, match=r"cut\.parquet: not a complete parquet file"):
        cut_units(list_inputs([tmp_path / "cut.parquet"]), 1 << 30)


def test_as_many_files_are_looked_at_as_tell_that_their_text_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("a/x.jsonl", 100), ("b/y.jsonl.gz", 10), ("b/z.txt", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    places = [tmp_path / "a", tmp_path / "b", f"{tmp_path}/*/x.jsonl"]  # the same file twice
    total = 100 + 16 * 10 + 7
    assert not exceed(places, total)
    assert exceed(places, total - 1)
    for index in range(1000):
        (tmp_path / "a" / f"{index}.jsonl").write_bytes(LINE)
    seen: list[str] = []
    growth = inputs._largest_growth
    monkeypatch.setattr(inputs, "_largest_growth", lambda path: seen.append(path) or growth(path))
    assert exceed(places, 200) and len(seen) < 40
    # What is missing is missed, although enough has been seen.
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no input there"):
        exceed([*places, tmp_path / "none"], 200)


def test_split_comes_from_the_file_name() -> None:
    assert InputFile("eng_Latn/validation.jsonl", 1, 0).split == "validation"
    assert InputFile("eng_Latn/train.jsonl", 1, 0).split == "train"


def test_units_cover_every_byte_once_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 100)
    sizes = [250, 7, 1, 990, 100]
    files = [InputFile(f"f{index}.jsonl", size, 0) for index, size in enumerate(sizes)]
    units = cut_units(files, largest=100)
    for file in files:
        pieces = [(s.start, s.stop) for unit in units for s in unit.segments if s.file == file]
        assert pieces[0][0] == 0 and pieces[-1][1] == file.bytes
        assert all(before[1] == after[0] for before, after in itertools.pairwise(pieces))
    assert all(unit.bytes <= 100 for unit in units)
    assert [unit.index for unit in units] == list(range(len(units)))
    files = sorted({segment.file for unit in units for segment in unit.segments}, key=lambda file: file.path)
    numbers = {file.path: number for number, file in enumerate(files)}
    assert [Unit.from_json(n, unit.to_json(numbers), files) for n, unit in enumerate(units)] == units


def test_parquet_is_cut_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 1)
    table = pa.table({"text": [os.urandom(50).hex() for _ in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none")
    units = cut_units(list_inputs([tmp_path / "a.parquet"]), largest=3000)
    groups = [(s.start, s.stop) for unit in units for s in unit.segments]
    assert groups[0][0] == 0 and groups[-1][1] == 10 and len(groups) > 2
    assert all(before[1] == after[0] for before, after in itertools.pairwise(groups))


def test_units_keep_all_processes_busy_whatever_the_input() -> None:
    mib = 1 << 20

    def units(size: int) -> list[int]:
        return [unit.bytes for unit in cut_units([InputFile("a.jsonl", size * mib, 0)], 4096 * mib)]

    assert units(7) == [7 * mib]
    assert units(10) == [5 * mib] * 2  # two of one size, not a whole one and a rest
    assert [len(units(size)) for size in (100, 600, 1000)] == [13, 32, 50]
    assert [len(units(size * 1024)) for size in (4, 64, 1024)] == [64, 410, 2048]
    for size in (9, 33, 257, 1025, 70_001):
        assert max(units(size)) - min(units(size)) < len(units(size)) and sum(units(size)) == size * mib
    assert cut_units([InputFile("empty.jsonl", 0, 0)], mib) == []
