"""Checksums of checkpoint files, and comparing files with them."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, sha256_file, write_json
from emma.base.system_errors import explain
from emma.checkpoints_conversion.checkpoint import check_written
from emma.tools.runs import checksums
from emma.tools.runs.checkpoints import COMPLETE_MARK, complete_steps, listed_files, mark_complete
from emma.tools.runs.checksums import ListedFile, checksum_file
from emma.tools.runs.integrity import check_files, deal, verify
from tests.tools.runs.test_checkpoints import save


def test_the_mark_lists_size_and_checksum_and_is_checked_itself(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    mark = read_json(folder / COMPLETE_MARK)
    assert mark["files"]["metadata.json"] == {
        "bytes": 2,
        "checksum": checksum_file(folder / "metadata.json").checksum,
    }
    text = (folder / COMPLETE_MARK).read_bytes()
    for bit in random.Random(7).sample(range(len(text) * 8), 600):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / COMPLETE_MARK).write_bytes(changed)
        assert complete_steps(tmp_path) == [], (bit, changed)
    (folder / COMPLETE_MARK).write_bytes(text)
    assert verify(folder).state == "verified"


def test_a_mark_of_an_older_version_lists_sizes_only(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    write_json(folder / COMPLETE_MARK, {"step": 5, "files": {"__0_0.distcp": 100, "metadata.json": 2}})
    assert complete_steps(tmp_path) == [5]
    assert verify(folder).state == "sizes only"
    (folder / "__0_0.distcp").write_bytes(b"y" * 100)
    assert verify(folder).state == "sizes only", "which is why it is said"
    (folder / "__0_0.distcp").write_bytes(b"y" * 99)
    assert verify(folder).faults == ("__0_0.distcp has 99 bytes, but 100 were written",)


def test_checksums_that_are_known_are_not_taken_again(tmp_path: Path) -> None:
    """The import knows SHA-256 from writing."""
    folder = save(tmp_path, 5, complete=False)
    known = ListedFile(100, f"sha256:{sha256_file(folder / '__0_0.distcp')}")
    mark_complete(folder, {"__0_0.distcp": known}, step=5)
    kinds = {name: str(file.checksum).partition(":")[0] for name, file in listed_files(folder).items()}
    assert kinds == {"__0_0.distcp": "sha256", "metadata.json": "xxh3_128"}
    assert verify(folder).state == "verified"
    (folder / "__0_0.distcp").write_bytes(b"x" * 99 + b"y")
    assert verify(folder).faults == (
        "__0_0.distcp holds other bytes than were written (its checksum differs)",
    )


def test_each_file_is_dealt_once_and_the_shares_are_even() -> None:
    generator = random.Random(3)
    sizes = {
        f"__{rank}_{n}.distcp": generator.randrange(10**8, 2 * 10**8) for rank in range(512) for n in range(2)
    }
    sizes |= {".metadata": 3 * 10**7, "metadata.json": 100}
    for shares in (1, 3, 64, 512, 2000):
        dealt = deal(sizes, shares)
        assert sorted(name for names in dealt for name in names) == sorted(sizes)
        loads = [sum(sizes[name] for name in names) for names in dealt]
        assert max(loads) <= sum(sizes.values()) / shares + max(sizes.values())
    assert deal(sizes, 64) == deal(dict(reversed(sizes.items())), 64)


class Failing:
    """`os`-level reads that fail for a while."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times, self.open = number, times, Path.open

    def __call__(self, path: Path, *values: Any, **named: Any) -> Any:
        if path.name == "__0_0.distcp" and self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.open(path, *values, **named)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_error_that_passes_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = save(tmp_path, 5)
    monkeypatch.setattr(checksums, "PAUSES", (0.0, 0.0))
    failing = Failing(number, 2)
    monkeypatch.setattr(Path, "open", lambda path, *values, **named: failing(path, *values, **named))
    assert verify(folder).state == "verified" and failing.times == 0
    failing.times = 3
    assert verify(folder).state == "damaged", "after the last try it counts"


def test_a_file_that_may_not_be_read_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)
    failing = Failing(errno.EACCES, 9)
    monkeypatch.setattr(Path, "open", lambda path, *values, **named: failing(path, *values, **named))
    assert verify(folder).state == "unreadable"


def test_a_process_without_open_files_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)
    failing = Failing(errno.EMFILE, 1)
    monkeypatch.setattr(Path, "open", lambda path, *values, **named: failing(path, *values, **named))
    with pytest.raises(OSError, match=r"Too many open files.*__0_0\.distcp") as caught:
        verify(folder)
    assert "raise the limit" in str(explain(caught.value))

    def no_more(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(Path, "read_bytes", no_more)
    with pytest.raises(OSError, match=r"Too many open files.*complete\.json"):
        complete_steps(tmp_path)


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [(errno.EACCES, UserError, "let this user read it"), (None, CheckFailedError, "restore it")],
)
def test_an_export_says_whether_to_restore_a_file_or_to_let_it_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, kind: type[UserError], fix: str
) -> None:
    folder = save(tmp_path, 5)
    if number is None:
        (folder / "__0_0.distcp").write_bytes(b"y" * 100)
    else:
        failing = Failing(number, 9)
        monkeypatch.setattr(Path, "open", lambda path, *values, **named: failing(path, *values, **named))
    with pytest.raises(UserError, match=rf"__0_0\.distcp .*Fix: {fix}$") as caught:
        check_written(tmp_path)
    assert type(caught.value) is kind


def test_a_single_wrong_read_is_no_damage_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = save(tmp_path, 5), list[str]()
    right, wrong = checksums.checksum_file, [ListedFile(100, "xxh3_128:0")]
    monkeypatch.setattr(
        "emma.tools.runs.integrity.checksum_file", lambda *values: wrong.pop() if wrong else right(*values)
    )
    assert check_files(folder, listed_files(folder), say=said.append) == []
    assert len(said) == 1 and "the memory or disk of this node is suspect" in said[0]


def test_another_kind_of_checksum_is_refused_and_no_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, 5, complete=False)
    mark_complete(folder, {"__0_0.distcp": ListedFile(100, "blake9:00")}, step=5)
    assert verify(folder).state == "unreadable" and "blake9" in verify(folder).faults[0]


def test_every_byte_of_a_file_counts(tmp_path: Path) -> None:
    path, content = tmp_path / "file", bytearray(random.Random(0).randbytes(checksums._CHUNK + 5000))
    path.write_bytes(content)
    whole = checksum_file(path)
    assert whole == ListedFile(len(content), checksums.checksum_of(bytes(content)))
    for place in (4097, checksums._CHUNK - 1, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        assert checksum_file(path).checksum != whole.checksum, place
        content[place] ^= 1
