"""Records counted before they are read."""

from __future__ import annotations

from os import preadv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.tools.pack import count
from emma.tools.pack.count import count_records
from emma.tools.pack.inputs import InputFile, list_inputs


def write_lines(path: Path, sizes: list[int]) -> None:
    path.write_text("".join(f'{{"text": "{"x" * size}"}}\n' for size in sizes))


@pytest.fixture
def files(tmp_path: Path) -> list[InputFile]:
    write_lines(tmp_path / "a.jsonl", [5000, 1, 40_000, 7])
    write_lines(tmp_path / "b.jsonl", [10] * 3)
    (tmp_path / "empty.jsonl").touch()
    pq.write_table(pa.table({"text": ["x"] * 11}), tmp_path / "c.parquet", row_group_size=4)
    return list_inputs([tmp_path])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each time that a file was read."""
    sizes: list[int] = []
    monkeypatch.setattr(count.os, "preadv", lambda *where: sizes.append(preadv(*where)) or sizes[-1])
    return sizes


def test_lines_and_rows_are_counted(files: list[InputFile], monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_records(files) == 18
    monkeypatch.setattr(count, "_BLOCK", 999)
    assert count_records(files) == 18
    assert count_records([]) == 0


def test_a_file_that_grows_meanwhile_is_counted_as_it_was(
    files: list[InputFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count, "_BLOCK", 99)
    with Path(files[1].path).open("a") as handle:
        handle.write("{}\n" * 999)
    assert count_records(files) == 18


def test_records_of_other_kinds_are_not_known(files: list[InputFile], tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    assert count_records(list_inputs([tmp_path])) is None


def test_of_much_text_as_much_is_looked_at_as_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    # Long documents first: the beginnings of files would tell of too few, their ends of too many.
    for number in range(8):
        write_lines(tmp_path / f"{number}.jsonl", [900] * 200 + [30] * 6000)
    files = list_inputs([tmp_path])
    monkeypatch.setattr(count, "_BLOCK", 4096)
    monkeypatch.setattr(count, "_BYTES", sum(file.bytes for file in files) // 4)
    counted = count_records(files)
    assert counted is not None and abs(counted / (8 * 6200) - 1) < 0.05
    assert sum(read) < 1.05 * count._BYTES
    monkeypatch.setattr(count, "_FILES", 3)
    counted = count_records(files)
    assert counted is not None and abs(counted / (8 * 6200) - 1) < 0.05


def test_of_many_small_files_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    for number in range(400):
        write_lines(tmp_path / f"{number:03d}.jsonl", [50] * (number % 7 + 1))
    files = list_inputs([tmp_path])
    monkeypatch.setattr(count, "_BLOCK", 512)
    monkeypatch.setattr(count, "_BYTES", sum(file.bytes for file in files) // 4)
    counted = count_records(files)
    assert counted is not None and abs(counted / sum(number % 7 + 1 for number in range(400)) - 1) < 0.05
    assert sum(read) < 1.05 * count._BYTES
