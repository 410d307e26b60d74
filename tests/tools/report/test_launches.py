"""The table of a run's launches."""

from __future__ import annotations

from pathlib import Path

from emma.tools.report.provenance import launches
from emma.tools.report.records import RunRecord
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import set_aside
from tests.small_recipe import small_recipe
from tests.tools.runs.test_checkpoints import save


def test_a_launch_names_the_checkpoint_that_it_set_aside(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    save(run.checkpoints, 4)
    save(run.checkpoints, 6)
    launch = run.prepare(recipe)
    set_aside(run.checkpoints, run.checkpoints_log, 6, "its reason", "files", run.fence(launch))
    run.release_claim(launch)
    run.prepare(recipe)
    rows = launches(RunRecord(run.path, recipe, environment=run.read_environment()))
    assert [row["load"] for row in rows] == [
        "scratch",
        "resume from step 6; step 6 set aside (2 steps lost): its reason",
        "resume from step 4",
    ]
