"""Checkpoints that would run code, through every command that takes one: refused with one message, nothing executed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emma.recipes.schema import Recipe
from emma.tools.inspection.checkpoints import inspect_checkpoint
from emma.tools.runs.run_folder import RunFolder
from tests.command_line import emma
from tests.hostile import FOLDERS, seal
from tests.ranks import start_ranks
from tests.tools.training.conftest import Small

STEP = "iter_0000000"


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that a payload makes; no test may find it."""
    yield tmp_path / "attacked"
    assert not (tmp_path / "attacked").exists()


def refused(*arguments: object) -> str:
    """The one line with which a command refuses."""
    answer = emma(*map(str, arguments))
    lines = answer.err.strip().splitlines()
    assert answer.code != 0, arguments
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    return lines[0]


@pytest.fixture
def start(make_small: Callable[[int], Small], tmp_path: Path) -> Path:
    """A copy of the imported base model, to be poisoned."""
    return Path(shutil.copytree(make_small(10).base, tmp_path / "base"))


def train(small: Small, checkpoint: Path, name: str, *more: str, mode: str = "weights") -> list[str]:
    start = f"start={{mode: {mode}, checkpoint: '{checkpoint}'}}"
    return ["train", str(small.folder / "small.yaml"), f"name={name}", start, *more]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_command_refuses(
    name: str, start: Path, marker: Path, make_small: Callable[[int], Small], tmp_path: Path
) -> None:
    FOLDERS[name](start / STEP, marker)
    seal(start / STEP)
    small = make_small(10)
    for mode in ("weights", "phase"):
        message = refused(*train(small, start, f"hostile-{mode}", mode=mode))
        assert "refused: " in message and "Nothing of it was executed" in message
        refused(*train(small, start, f"hostile-{mode}", "--dry-run", mode=mode))
        refused(*train(small, start, f"hostile-{mode}", "--prepare", mode=mode))
    # A claim is taken and given back; nothing that ranks could start from is written.
    assert not list((small.folder / "runs" / "hostile-weights").rglob("launch.json"))
    refused("convert", "megatron-to-hf", start, tmp_path / "out")
    refused("convert", "megatron-to-hf", start, tmp_path / "out", "--dry-run")
    refused("convert", "verify", start, start)
    assert "pickles are refused" in refused("convert", "inspect", start)
    for folder in (start, start / STEP):
        refused("evaluate", "run", folder)
        refused("release", "model", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_is_inspected_before_it_resumes(
    start: Path, marker: Path, make_small: Callable[[int], Small]
) -> None:
    small = make_small(10)
    run = RunFolder(small.recipe("hostile-resume").run_folder)
    shutil.copytree(start / STEP, run.checkpoints / "iter_0000005")
    FOLDERS["the common state"](run.checkpoints / "iter_0000005", marker)
    seal(run.checkpoints / "iter_0000005")
    message = refused(*train(small, small.base, "hostile-resume"))
    assert "iter_0000005" in message and "common_state" in message
    # An intact one before it changes nothing: the files are what was written, so a person must look.
    shutil.copytree(small.base / STEP, run.checkpoints / "iter_0000002")
    assert "iter_0000005" in refused(*train(small, small.base, "hostile-resume"), "--dry-run")
    # Files that the completion mark contradicts are damage: the ranks compare them before they load any, and go back.
    shutil.rmtree(run.checkpoints / "iter_0000005")
    shutil.copytree(start / STEP, run.checkpoints / "iter_0000005")
    table = run.checkpoints / "iter_0000005" / ".metadata"
    table.write_bytes(table.read_bytes().replace(b"TensorStorageMetadata", b"TensorStorageMetadatb"))
    assert run.check_load(small.recipe("hostile-resume")).step == 5


def test_what_this_project_writes_is_inert(make_small: Callable[[int], Small]) -> None:
    found = inspect_checkpoint(make_small(10).base / STEP)
    assert found.refused == [] and found.missing == [] and found.parameters > 100_000


def load_in_ranks(folder: str) -> None:
    """A rank of a launch whose checkpoint changed after the launcher had looked at it."""
    from emma.tools.training.worker import main

    raise SystemExit(main([folder]))


def poison_after_the_check(recipe: Recipe, poison: Callable[[Path], None]) -> RunFolder:
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe)
    folder = Path(str(launch.load.folder)) / STEP
    poison(folder)
    seal(folder)
    return run


@pytest.mark.parametrize("name", [".metadata holds a call", "the common state", "common.pt", "a rank's file"])
def test_the_ranks_refuse_too(
    name: str, start: Path, marker: Path, make_small: Callable[[int], Small]
) -> None:
    """The launcher's look is not what protects: the ranks read through the same list."""
    small = make_small(10)
    recipe = small.recipe(f"hostile-ranks-{list(FOLDERS).index(name)}", f"start.checkpoint={start}")
    run = poison_after_the_check(recipe, lambda folder: FOLDERS[name](folder, marker))
    (outcome,) = start_ranks(load_in_ranks, 1, str(run.path), env=run.read_launch().environment).outcomes(
        timeout=120
    )
    assert outcome.exit_code == 2, outcome.output
    last = outcome.output.strip().splitlines()[-1]
    assert last.startswith("error: ") and "refused: " in last and "Nothing of it was executed" in last, (
        outcome.output
    )
