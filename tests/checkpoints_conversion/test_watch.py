"""Converting the checkpoints of a running job."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.checkpoints_conversion.watch import last_step, watch
from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete


def _save(run: Path, step: int) -> None:
    folder = checkpoint_folder(run / "checkpoints", step)
    folder.mkdir(parents=True)
    mark_complete(folder, step=step)


def test_each_new_checkpoint_until_the_last(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "hf"
    _save(run, 10)
    (run / "recipe.yaml").write_text("schedule: {steps: 30}\n")
    coming = [20, 30]

    def convert(step: int, target: Path) -> None:
        target.mkdir(parents=True)

    def sleep(seconds: float) -> None:
        _save(run, coming.pop(0))

    assert last_step(run) == 30
    assert watch(run, out, convert, until=last_step(run), sleep=sleep, say=lambda text: None) == [10, 20, 30]
    assert watch(run, out, convert, until=30, sleep=sleep, say=lambda text: None) == []


def test_a_checkpoint_deleted_meanwhile_is_passed_over(tmp_path: Path) -> None:
    run, said = tmp_path / "run", []
    _save(run, 10)
    _save(run, 20)

    def convert(step: int, target: Path) -> None:
        if step == 10:
            (checkpoint_folder(run / "checkpoints", 10) / "complete.json").unlink()
            raise UserError("gone")
        target.mkdir(parents=True)

    assert watch(run, tmp_path / "hf", convert, until=20, say=said.append) == [20]
    assert said[0].startswith("step 10 was deleted")


def test_other_failures_stop_it(tmp_path: Path) -> None:
    _save(tmp_path / "run", 10)

    def convert(step: int, target: Path) -> None:
        raise UserError("disk full")

    with pytest.raises(UserError, match="disk full"):
        watch(tmp_path / "run", tmp_path / "hf", convert, until=10)
