"""What a folder's file system can do is tried, not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base import file_systems
from emma.base.file_systems import examine_file_system


def test_a_sound_file_system_has_no_fault_and_nothing_stays(tmp_path: Path) -> None:
    found = examine_file_system(tmp_path / "not" / "there")
    assert found.folder == str(tmp_path) and found.faults == []
    assert found.kind and found.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answers", "says"), [((None, None), "flock"), ((True, True), "two writers")])
def test_locks_that_do_not_lock_are_named(
    answers: tuple[bool | None, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(answers)
    monkeypatch.setattr(file_systems, "try_lock", lambda descriptor: next(given))
    (fault,) = examine_file_system(tmp_path).faults
    assert says in fault and "Fix: " in fault


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("rw,flock,lazystatfs", None),
        ("rw,localflock,lazystatfs", "`localflock`"),
        ("rw,vers=4.2,local_lock=none", None),
        ("rw,vers=3,nolock,local_lock=all", "`local_lock=all`"),
    ],
)
def test_locks_that_hold_on_one_machine_are_named(
    options: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} lustre {options} 0 0\n"
    monkeypatch.setattr(file_systems, "_mounts", lambda: text)
    found = examine_file_system(tmp_path)
    assert found.kind == "lustre"
    assert [says in fault and "submit from one machine" in fault for fault in found.faults] == (
        [] if says is None else [True]
    )


def test_a_file_system_without_links_and_renames_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    assert [fault.partition(":")[0] for fault in examine_file_system(tmp_path).faults] == ["renames", "links"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named() -> None:
    (fault,) = examine_file_system(Path("/proc")).faults
    assert fault.startswith("cannot be written")
