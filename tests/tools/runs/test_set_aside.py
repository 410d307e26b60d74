"""What is done about a checkpoint that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import write_json
from emma.recipes.schema import Recipe
from emma.tools.runs import checksums, set_aside
from emma.tools.runs.checkpoints import COMPLETE_MARK, TRACKER, complete_steps
from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.runs.set_aside import LoadFailure, set_asides
from tests.small_recipe import small_recipe
from tests.tools.runs.test_checkpoints import save


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_aside, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(checksums, "PAUSES", (0.0, 0.0))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


@pytest.fixture
def run(recipe: Recipe) -> RunFolder:
    """A run with checkpoints of steps 5, 10 and 15."""
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    for step in (5, 10, 15):
        save(run.checkpoints, step)
    return run


def asides(run: RunFolder, step: int, reason: str = "reason") -> None:
    """What a launch does with a damaged checkpoint."""
    fence = run.claims.take(lambda claim: None)
    set_aside.set_aside(run.checkpoints, run.checkpoints_log, step, reason, "files", fence)
    fence.end("tested")


def failed(run: RunFolder, recipe: Recipe, kind: str, error: str) -> Launch:
    """A launch on which Megatron could not load."""
    launch = run.prepare(recipe)
    LoadFailure(launch.load.step, 1, "n1", kind, error).write(Path(launch.logs))
    assert run.outcome(launch) == "load failed"
    run.release_claim(launch)
    return launch


def test_a_checkpoint_that_does_not_load_is_set_aside_and_says_what_it_costs(
    run: RunFolder, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(run, recipe, "content", "KeyError: 'x'")
    launch = run.prepare(recipe)
    assert launch.load.step == 10 and complete_steps(run.checkpoints) == [5, 10]
    ((aside, record),) = set_asides(run.checkpoints).items()
    assert aside.name == "iter_0000015.damaged-1" and record.steps_lost == 5 and record.kind == "load"
    assert (
        "iter_0000015 is set aside: it could not be loaded on rank 1 (n1): KeyError: 'x'; "
        "training goes back to step 10, and 5 steps are trained again" in capsys.readouterr().err
    )
    assert (run.checkpoints / TRACKER).read_text() == "10"
    assert read_lines(run.checkpoints_log)[-1]["folder"] == aside.name


def test_a_read_error_is_tried_once_more_before_that(run: RunFolder, recipe: Recipe) -> None:
    failed(run, recipe, "read", "OSError: [Errno 116] Stale file handle")
    assert failed(run, recipe, "read", "OSError: [Errno 5] Input/output error").load.step == 15
    assert run.prepare(recipe).load.step == 10 and list(set_asides(run.checkpoints))


def test_what_fails_in_the_same_way_twice_is_no_fault_of_the_checkpoints(
    run: RunFolder, recipe: Recipe
) -> None:
    """Another layout, another version: all are kept, and the last is tried first again."""
    failed(run, recipe, "content", "ValueError: 4 shards in /a/iter_0000015, 2 expected")
    assert (
        failed(run, recipe, "content", "ValueError: 4 shards in /a/iter_0000010, 2 expected").load.step == 10
    )
    with pytest.raises(
        CheckFailedError,
        match=r"iter_0000015, iter_0000010 fail to load in the same way.*all of them are kept",
    ):
        run.prepare(recipe)
    assert complete_steps(run.checkpoints) == [5, 10, 15] and not set_asides(run.checkpoints)
    assert not list(run.checkpoints.glob("*/damaged.json"))


def test_what_fails_in_another_way_is_set_aside_too(run: RunFolder, recipe: Recipe) -> None:
    failed(run, recipe, "content", "KeyError: 'x'")
    failed(run, recipe, "content", "UnpicklingError: invalid load key")
    assert run.prepare(recipe).load.step == 5 and len(set_asides(run.checkpoints)) == 2


def test_the_only_checkpoint_is_kept_where_it_does_not_load(run: RunFolder, recipe: Recipe) -> None:
    for step in (5, 10):
        (run.checkpoints / f"iter_{step:07d}").rename(run.path / str(step))
    failed(run, recipe, "content", "KeyError: 'x'")
    with pytest.raises(CheckFailedError, match="There is no checkpoint before it, and it is kept"):
        run.prepare(recipe)
    assert complete_steps(run.checkpoints) == [15]


@pytest.mark.parametrize("kind", ["machine", "peer"])
def test_a_failing_machine_and_lost_peers_say_nothing_about_a_checkpoint(
    run: RunFolder, recipe: Recipe, kind: str
) -> None:
    launch = run.prepare(recipe)
    LoadFailure(15, 0, "n1", kind, "RuntimeError").write(Path(launch.logs))
    LoadFailure(15, 1, "n1", "peer", "Connection closed by peer").write(Path(launch.logs))
    assert run.outcome(launch) is None
    run.release_claim(launch)
    assert run.prepare(recipe).load.step == 15


def test_another_folders_checkpoint_is_never_renamed(run: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    """A run that begins by `resume` from another run loads with the same mode as its own resumption."""
    (run.checkpoints / TRACKER).write_text("15")
    start = f"start={{mode: resume, checkpoint: '{run.path}'}}"
    other = small_recipe(tmp_path, ["name=other", start])
    folder = RunFolder(other.run_folder)
    launch = folder.prepare(other)
    LoadFailure(15, 0, "n1", "content", "KeyError: 'x'").write(Path(launch.logs))
    assert folder.outcome(launch) is None
    folder.release_claim(launch)
    assert folder.prepare(other).load.step == 15 and complete_steps(run.checkpoints) == [5, 10, 15]


def test_what_was_complete_is_set_aside_and_what_never_was_is_passed_over(
    run: RunFolder, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.checkpoints / "iter_0000015" / "metadata.json").unlink()
    save(run.checkpoints, 20, complete=False)
    assert run.prepare(recipe).load.step == 10
    said = capsys.readouterr().err
    assert (
        "checkpoint iter_0000015 is set aside: metadata.json is missing; training goes back to step 10"
        in said
    )
    assert "passing over checkpoint iter_0000020: complete.json is missing: the save did not finish" in said
    assert (run.checkpoints / "iter_0000020").is_dir()


def test_a_second_one_of_the_same_step_gets_another_name(run: RunFolder) -> None:
    for _ in range(2):
        asides(run, 15)
        save(run.checkpoints, 15)
    assert [path.name for path in set_asides(run.checkpoints)] == [
        "iter_0000015.damaged-1",
        "iter_0000015.damaged-2",
    ]


@pytest.mark.parametrize("trace", ["set aside", "mark", "launch", "saved"])
def test_a_run_that_had_checkpoints_does_not_begin_again_by_itself(
    run: RunFolder, recipe: Recipe, trace: str
) -> None:
    """Whatever trace of them is left."""
    if trace == "launch":
        run.release_claim(run.prepare(recipe))
    for step in (5, 10, 15):
        folder = run.checkpoints / f"iter_{step:07d}"
        if trace == "set aside" and step == 15:
            asides(run, 15)
            run.checkpoints_log.unlink()
        elif trace == "mark" and step == 15:
            (folder / COMPLETE_MARK).write_text("{")
        else:
            folder.rename(run.path / str(step))
    if trace == "saved":
        fence = run.claims.take(lambda claim: None)
        set_aside.record_event(run.checkpoints_log, fence, "saved", step=15)
        fence.end("tested")
    with pytest.raises(
        UserError, match=r"none of them can be used.*Nothing is started from the beginning by itself"
    ):
        run.prepare(recipe)


def test_a_kill_in_the_first_save_begins_again(recipe: Recipe) -> None:
    """The mark was never written, though Megatron's tracker file may be there; it is taken away, so that the next
    save of that step counts as new."""
    run = RunFolder(recipe.run_folder)
    run.release_claim(run.prepare(recipe))
    save(run.checkpoints, 5, complete=False)
    (run.checkpoints / TRACKER).write_text("5")
    assert run.prepare(recipe).load.mode == "scratch"
    assert not (run.checkpoints / TRACKER).exists()


def test_a_reason_that_cannot_be_read_stops_nothing(run: RunFolder, recipe: Recipe) -> None:
    asides(run, 15)
    (run.checkpoints / "iter_0000015.damaged-1" / "damaged.json").write_bytes(b"\0\0")
    assert run.prepare(recipe).load.step == 10


def test_a_killed_set_aside_is_done_again(run: RunFolder, recipe: Recipe) -> None:
    """Killed before the reason was written, or after: the next launch ends the move."""
    for step, written in ((15, False), (10, True)):
        fence = run.claims.take(lambda claim: "killed")
        moving = fence.take(run.checkpoints / f"iter_{step:07d}", f"iter_{step:07d}.damaged-1")
        if written:
            write_json(moving / "damaged.json", {"step": step})
    assert run.prepare(recipe, take_over=True).load.step == 5
    assert [path.name for path in set_asides(run.checkpoints)] == [
        "iter_0000010.damaged-1",
        "iter_0000015.damaged-1",
    ]
