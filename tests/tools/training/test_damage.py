"""Damaged checkpoints of a real run of two ranks: found before a step is trained, set aside, and the run goes on from
the one before with the uninterrupted losses."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import COMPLETE_MARK, TRACKER, checkpoint_folder, complete_steps
from emma.tools.runs.integrity import verify
from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import set_asides
from tests.tools.training.conftest import Small
from tests.tools.training.damage import DAMAGES, damage
from tests.training_run import losses, start_run, train_run, validation

STEPS = 20
TWO = ("cluster.gpus_per_node=2", "parallelism={tensor: 2}", "checkpoint={interval: 5}")


class Stopped:
    """A run that has checkpoints of steps 5, 10 and 15 and was killed after the last; can be had again and again."""

    def __init__(self, recipe: Recipe, aside: Path) -> None:
        self.recipe, self.run, self.aside = recipe, RunFolder(recipe.run_folder), aside
        job = start_run(recipe)
        job.wait_for("iteration       16/", rank=1, timeout=240)
        job.signal(signal.SIGKILL)
        job.outcomes(timeout=60)
        shutil.copytree(self.run.path, aside)

    def again(self) -> RunFolder:
        shutil.rmtree(self.run.path)
        shutil.copytree(self.aside, self.run.path)
        return self.run


@pytest.fixture(scope="module")
def whole(make_small: Callable[[int], Small]) -> RunFolder:
    """The uninterrupted run."""
    return train_run(make_small(STEPS).recipe("undamaged", *TWO))


@pytest.fixture(scope="module")
def stopped(make_small: Callable[[int], Small], tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return Stopped(make_small(STEPS).recipe("damaged", *TWO), tmp_path_factory.mktemp("stopped") / "run")


def test_every_damage_is_found(stopped: Stopped, tmp_path: Path) -> None:
    """Each kind, at random places of every file, and of the mark itself."""
    place, source = random.Random(5), checkpoint_folder(stopped.aside / "checkpoints", 15)
    assert verify(source).state == "verified"
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert {str(name) for name in files} > {".metadata", "metadata.json", COMPLETE_MARK, "__0_0.distcp"}
    for name in files:
        for kind, harm in DAMAGES.items():
            for _ in range(5 if kind == "flipped bit" else 1):
                folder = tmp_path / "iter_0000015"
                shutil.copytree(source, folder)
                harm(folder / name, place)
                verdict = verify(folder)
                assert verdict.state in ("damaged", "incomplete") and verdict.faults, (name, kind)
                shutil.rmtree(folder)


def goes_back_and_repeats(run: RunFolder, recipe: Recipe, whole: RunFolder) -> None:
    """Two launches: one that finds the damage, one that trains from step 10 to the end."""
    before = run.metrics_file.read_bytes()
    if complete_steps(run.checkpoints)[-1] == 15:
        train_run(recipe)
        assert run.metrics_file.read_bytes() == before, "nothing is trained on a damaged checkpoint"
        state = read_json(run.state_file)
        assert (state["state"], state["step"], state["back_to"], state["steps_lost"]) == (
            "set aside",
            15,
            10,
            5,
        )
        (aside,) = set_asides(run.checkpoints)
        assert aside.name == "iter_0000015.damaged-1"
        assert "training goes back to step 10, and 5 steps are trained again" in state["reason"]
    train_run(recipe)
    assert run.read_launch().load.step == 10
    assert losses(run) == losses(whole) and validation(run)[STEPS] == validation(whole)[STEPS]
    assert complete_steps(run.checkpoints) == [5, 10, 15, 20]
    assert all(
        verify(checkpoint_folder(run.checkpoints, step)).state == "verified" for step in (5, 10, 15, 20)
    )


def test_a_zeroed_block_costs_the_steps_since_the_checkpoint_before(
    stopped: Stopped, whole: RunFolder
) -> None:
    run, checkpoint = stopped.again(), checkpoint_folder(stopped.run.checkpoints, 15)
    DAMAGES["zeroed block"](checkpoint / "__1_0.distcp", random.Random(0))
    # What the tracker file holds must not matter either: Megatron ends in silence where it cannot read it.
    (run.checkpoints / TRACKER).write_bytes(b"\x00\xff\x00")
    goes_back_and_repeats(run, stopped.recipe, whole)
    assert read_json(run.state_file)["set_aside"][0]["step"] == 15
    saved = [event["step"] for event in read_lines(run.checkpoints_log) if event["event"] == "saved"]
    assert saved == [5, 10, 15, 15, 20]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_damage(seed: int, stopped: Stopped, whole: RunFolder) -> None:
    run, place = stopped.again(), random.Random(seed)
    damage(checkpoint_folder(run.checkpoints, 15), list(DAMAGES)[seed % len(DAMAGES)], place)
    goes_back_and_repeats(run, stopped.recipe, whole)


def test_where_none_is_left_nothing_begins_again_by_itself(stopped: Stopped) -> None:
    run = stopped.again()
    for step in (5, 10, 15):
        (checkpoint_folder(run.checkpoints, step) / COMPLETE_MARK).unlink()
    with pytest.raises(
        UserError, match=r"none of them can be used .*iter_0000015: complete\.json is missing"
    ):
        run.prepare(stopped.recipe, take_over=True)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(UserError, match=r"iter_0000015: is gone.*begin again under another name"):
        run.prepare(stopped.recipe, take_over=True)
