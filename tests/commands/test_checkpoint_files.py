"""`emma train RUN --verify-checkpoints` and `emma convert verify` of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emma.base.files import write_json
from emma.tools.runs.checkpoints import COMPLETE_MARK
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import record_event, set_aside
from tests.command_line import emma
from tests.small_recipe import small_recipe
from tests.tools.runs.test_checkpoints import save


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints of steps 5, 10 and 15."""
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    fence = run.fence(run.prepare(recipe))
    for step in (5, 10, 15):
        save(run.checkpoints, step)
        record_event(run.checkpoints_log, fence, "saved", step=step)
    return run


def test_all_checkpoints_of_a_run_are_listed(run: RunFolder) -> None:
    write_json(run.checkpoints / "iter_0000005" / COMPLETE_MARK, {"files": {"__0_0.distcp": 100}})
    save(run.checkpoints, 20, complete=False)
    done = emma("train", str(run.path), "--verify-checkpoints")
    assert done.code == 0, done.err
    states = {line.split()[0]: line for line in done.out.splitlines()}
    assert list(states) == [f"iter_{step:07d}" for step in (5, 10, 15, 20)]
    assert "sizes only" in states["iter_0000005"] and "verified" in states["iter_0000010"]
    assert "incomplete" in states["iter_0000020"], "a save that is under way is no damage"


def test_damage_is_named_and_ends_with_one(run: RunFolder) -> None:
    (run.checkpoints / "iter_0000010" / "__0_0.distcp").write_bytes(b"y" * 100)
    (run.checkpoints / "iter_0000005" / COMPLETE_MARK).unlink()
    set_aside(run.checkpoints, run.checkpoints_log, 15, "its reason", "files", run.fence(run.read_launch()))
    done = emma("train", str(run.path), "--verify-checkpoints", "--json")
    found = json.loads(done.out)
    assert done.code == 1
    assert [row["state"] for row in found["checkpoints"]] == ["damaged", "damaged"]
    assert found["checkpoints"][0]["faults"] == ["complete.json is missing"]
    assert found["checkpoints"][1]["faults"][0].startswith("__0_0.distcp holds other bytes")
    assert [(row["step"], row["reason"]) for row in found["set_aside"]] == [(15, "its reason")]
    assert sorted(path.name for path in run.checkpoints.glob("iter_*")) == [
        *("iter_0000005", "iter_0000010", "iter_0000015.damaged-1"),
    ], "looking changes nothing"


def test_a_single_checkpoint(run: RunFolder) -> None:
    folder = run.checkpoints / "iter_0000010"
    assert emma("convert", "verify", str(folder)).code == 0
    (folder / "__0_0.distcp").write_bytes(b"y" * 100)
    assert emma("convert", "verify", str(folder)).code == 1
    assert emma("convert", "verify", str(run.path)).code == 1
    assert emma("convert", "verify", str(run.checkpoints / "iter_0000015")).code == 0
    set_aside(run.checkpoints, run.checkpoints_log, 10, "its reason", "files", run.fence(run.read_launch()))
    assert "damaged" in emma("convert", "verify", str(run.checkpoints / "iter_0000010.damaged-1")).out


def test_nothing_to_verify_is_misuse(tmp_path: Path) -> None:
    done = emma("convert", "verify", str(tmp_path))
    assert done.code == 2 and "no Megatron checkpoint" in done.err
