"""Complete and half-written checkpoints on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.runs.checkpoints import (
    COMPLETE_MARK,
    complete_steps,
    incomplete_steps,
    mark_complete,
    prune,
    resolve_start,
)
from tests.base.fsyncs import record_fsyncs


def save(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"iter_{step:07d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(b"x" * 100)
    (checkpoint / "metadata.json").write_text("{}")
    if complete:
        mark_complete(checkpoint, step=step)
    return checkpoint


def test_only_marked_checkpoints_are_complete(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10, complete=False)
    assert complete_steps(tmp_path) == [5]
    assert "the save did not finish" in incomplete_steps(tmp_path)[10]


def test_files_are_on_the_disk_before_the_mark_that_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron leaves metadata.json to the kernel; after a power cut it was empty below a mark that was whole."""
    checkpoint = save(tmp_path, 5, complete=False)
    events = record_fsyncs(monkeypatch)
    mark_complete(checkpoint, step=5)
    at = events.index(("rename", str(checkpoint / COMPLETE_MARK)))
    before = {path for what, path in events[:at] if what == "fsync"}
    assert before >= {str(checkpoint), str(checkpoint / "__0_0.distcp"), str(checkpoint / "metadata.json")}


def test_a_checkpoint_changed_after_it_was_marked_is_not_complete(tmp_path: Path) -> None:
    save(tmp_path, 5)
    cut = save(tmp_path, 10)
    (cut / "__0_0.distcp").write_bytes(b"x" * 50)
    missing = save(tmp_path, 15)
    (missing / "metadata.json").unlink()
    longer = save(tmp_path, 25)
    with (longer / "__0_0.distcp").open("ab") as handle:
        handle.write(b"x")
    damaged = save(tmp_path, 20)
    (damaged / COMPLETE_MARK).write_text('{"files": ')
    assert complete_steps(tmp_path) == [5]
    faults = incomplete_steps(tmp_path)
    assert faults[10] == "__0_0.distcp has 50 bytes, but 100 were written"
    assert faults[15] == "metadata.json is missing"
    assert faults[25] == "__0_0.distcp has 101 bytes, but 100 were written"
    assert faults[20] == "complete.json is damaged"


def test_retention_keeps_the_latest_and_every_nth(tmp_path: Path) -> None:
    for step in range(10, 110, 10):
        save(tmp_path, step)
    save(tmp_path, 35, complete=False)
    save(tmp_path, 110, complete=False)  # under way
    assert prune(tmp_path, 2, 50, shutil.rmtree) == [10, 20, 30, 35, 40, 60, 70, 80]
    assert complete_steps(tmp_path) == [50, 90, 100]
    assert list(incomplete_steps(tmp_path)) == [110]


def test_start_takes_the_latest_complete_step_of_a_run_folder(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 5)
    save(tmp_path / "checkpoints", 10)
    save(tmp_path / "checkpoints", 15, complete=False)
    assert resolve_start(str(tmp_path), None).step == 10
    assert resolve_start(str(tmp_path), 5).folder == tmp_path / "checkpoints"
    with pytest.raises(UserError, match=r"start\.step: 15 .* the save did not finish"):
        resolve_start(str(tmp_path), 15)


def test_a_missing_or_empty_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"emma convert hf-to-megatron"):
        resolve_start(str(tmp_path / "nowhere"), None)
    save(tmp_path, 5, complete=False)
    with pytest.raises(UserError, match=r"no complete checkpoint .*iter_0000005: complete\.json is missing"):
        resolve_start(str(tmp_path), None)
