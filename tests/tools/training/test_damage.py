"""Damaged checkpoints of a real run of two ranks: found before a step is trained, set aside, and the run goes on from
the one before with the uninterrupted losses."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import (
    COMPLETE_MARK,
    TRACKER,
    checkpoint_folder,
    complete_steps,
    listed_files,
)
from emma.tools.runs.checksums import ListedFile
from emma.tools.runs.integrity import verify
from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import LoadFailure, set_asides
from emma.tools.training.launch import rank_environment
from tests.command_line import emma
from tests.ranks import RanksError, run_ranks, start_ranks
from tests.tools.training.conftest import Small
from tests.tools.training.damage import DAMAGES, damage
from tests.training_run import losses, rank, start_run, train_run, validation

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
        state = read_json(run.read_launch().state_file)
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
    assert read_json(run.read_launch().state_file)["set_aside"][0]["step"] == 15
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


def test_what_an_older_version_wrote_is_loaded_with_a_warning_and_set_aside_where_that_fails(
    stopped: Stopped, whole: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sizes only: damage shows when Megatron reads it, on all ranks or on some."""
    run = stopped.again()
    for step in (10, 15):
        folder = checkpoint_folder(run.checkpoints, step)
        sizes = {name: file.bytes for name, file in listed_files(folder).items()}
        write_json(folder / COMPLETE_MARK, {"step": step, "files": sizes})
    DAMAGES["zeroed"](checkpoint_folder(run.checkpoints, 15) / ".metadata", random.Random(0))
    job = start_run(stopped.recipe)
    outcomes = job.outcomes(timeout=120)
    assert all(outcome.exit_code != 0 for outcome in outcomes), outcomes[1].output[-3000:]
    assert "warning: " in outcomes[0].output and "with sizes only" in outcomes[0].output
    assert run.outcome(run.read_launch()) == "load failed"
    capfd.readouterr()
    train_run(stopped.recipe)
    assert "iter_0000015 is set aside: it could not be loaded on rank" in capfd.readouterr().err
    assert losses(run) == losses(whole)


def rank_that_cannot_load(folder: str) -> None:
    """Rank 1 fails inside Megatron's load and then takes its time to end; rank 0 waits for it in a collective."""
    import torch
    from megatron.training import checkpointing, training

    def load(*values: Any, **named: Any) -> None:
        if torch.distributed.get_rank() == 1:
            raise KeyError("optimizer.state")
        torch.distributed.all_reduce(torch.zeros(1))

    def load_checkpoint(
        ddp_model: Any, optimizer: Any, opt_param_scheduler: Any, *values: Any, **named: Any
    ) -> None:
        load()

    assert training.load_checkpoint is checkpointing.load_checkpoint
    training.load_checkpoint = load_checkpoint
    try:
        rank(folder)
    except KeyError:
        time.sleep(30)
        raise


def test_a_rank_that_cannot_load_does_not_leave_the_others_waiting(stopped: Stopped) -> None:
    run = stopped.again()
    launch = run.prepare(stopped.recipe, take_over=True)
    job = start_ranks(
        rank_that_cannot_load, 2, str(run.path), env=rank_environment(stopped.recipe) | launch.environment
    )
    job.wait_for("another rank could not load the checkpoint; this one stops", timeout=60)
    begun = time.monotonic()
    outcomes = job.outcomes(timeout=60)
    assert time.monotonic() - begun < 20 and outcomes[0].exit_code == 1
    failure = LoadFailure.of_launch(Path(launch.logs))
    assert failure is not None and (failure.rank, failure.kind, failure.step) == (1, "content", 15)
    assert "KeyError: 'optimizer.state'" in failure.error
    assert run.outcome(launch) == "load failed"


def test_a_damaged_start_is_refused_and_left_alone(
    make_small: Callable[[int], Small], tmp_path: Path
) -> None:
    small = make_small(STEPS)
    base = tmp_path / "base"
    shutil.copytree(small.base, base)
    recipe = small.recipe("from-damaged", *TWO, f"start.checkpoint={base}")
    DAMAGES["flipped bit"](base / "iter_0000000" / "__0_0.distcp", random.Random(1))
    before = sorted(base.rglob("*"))
    with pytest.raises(
        RanksError, match=r"start\.checkpoint: .*iter_0000000 is damaged: __0_0\.distcp holds other bytes"
    ):
        train_run(recipe)
    assert sorted(base.rglob("*")) == before and losses(RunFolder(recipe.run_folder)) == {}


def test_a_damaged_checkpoint_is_not_exported(stopped: Stopped, tmp_path: Path) -> None:
    """The proof of parity compares with the damaged weights, so it would find nothing."""
    run = stopped.again()
    DAMAGES["flipped bit"](checkpoint_folder(run.checkpoints, 15) / "__1_0.distcp", random.Random(2))
    for more in ((), ("--step", "15"), ("--average", "10,15")):
        done = emma("convert", "megatron-to-hf", str(run.path), str(tmp_path / "hf"), "--no-parity", *more)
        assert done.code == 1 and "iter_0000015 is damaged: __1_0.distcp holds other bytes" in done.err
        assert not (tmp_path / "hf").exists()


def verified_by_ranks(folder: str, wrong: list[int]) -> tuple[list[str], list[str]]:
    """In a rank: what all ranks find together, and the files this one read; those of `wrong` read wrong bytes."""
    import torch

    from emma.tools.runs import integrity
    from emma.tools.training.session.loading import verify_together

    torch.distributed.init_process_group("gloo")
    read, right = [], integrity.checksum_file

    def checksum_file(path: Path, *values: Any) -> ListedFile:
        read.append(path.name)
        if torch.distributed.get_rank() in wrong:
            return ListedFile(path.stat().st_size, "xxh3_128:0")
        return right(path, *values)

    integrity.checksum_file = checksum_file
    return verify_together(Path(folder)), read


def test_each_byte_is_read_once_over_all_ranks(stopped: Stopped) -> None:
    folder = checkpoint_folder(stopped.aside / "checkpoints", 15)
    results = run_ranks(verified_by_ranks, 3, str(folder), [])
    assert [faults for faults, _ in results] == [[], [], []]
    assert sorted(name for _, read in results for name in read) == sorted(listed_files(folder))
    assert all(read for _, read in results)


def test_what_one_rank_alone_reads_wrong_is_no_damage(stopped: Stopped) -> None:
    """Bad memory on a node must not cost a good checkpoint, nor be loaded from."""
    folder = checkpoint_folder(stopped.aside / "checkpoints", 15)
    with pytest.raises(
        RanksError, match=r"one rank says that .* and rank \d reads it right\. Nothing was loaded"
    ):
        run_ranks(verified_by_ranks, 2, str(folder), [1])


def saved_in_the_background(folder: str) -> tuple[list[tuple[bool, bool]], int]:
    """In a rank: Megatron's real queue of asynchronous saves, and when the mark appears; reading is held back."""
    import threading

    import torch
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
    from megatron.training import async_utils

    from emma.recipes.load import load_recipe
    from emma.tools.training.session import marks
    from emma.tools.training.session.marks import Marks

    torch.distributed.init_process_group("gloo")
    rank_, run = torch.distributed.get_rank(), RunFolder(folder)
    recipe = load_recipe(folder)
    recipe = recipe.model_copy(
        update={"checkpoint": recipe.checkpoint.model_copy(update={"asynchronous": True})}
    )
    fence = run.fence(run.own_launch())
    part = Marks(recipe, run, fence, SimpleNamespace(fingerprint="mix"))  # type: ignore[arg-type]
    release, right = threading.Event(), marks.checksums

    def held_back(*values: Any) -> dict[str, ListedFile]:
        release.wait(30)
        return right(*values)

    marks.checksums = held_back
    source, target = checkpoint_folder(fence.saves, 5), checkpoint_folder(run.checkpoints, 5)
    queue = async_utils._async_calls_queue = AsyncCallsQueue(persistent=False)

    def finalize(blocking: bool = False, *rest: Any) -> None:
        queue.maybe_finalize_async_calls(blocking)

    def finish() -> None:
        if rank_ == 0:
            (fence.saves / TRACKER).write_text("5")

    seen = []

    def look() -> None:
        torch.distributed.barrier()
        seen.append((async_utils.is_empty_async_queue(), (target / COMPLETE_MARK).exists()))
        torch.distributed.barrier()

    part.maybe_finalize_async_save(finalize)
    look()
    queue.schedule_async_request(AsyncRequest(write_slowly, (str(source), rank_), [finish]))
    while not async_utils.is_empty_async_queue():
        part.maybe_finalize_async_save(finalize)  # as after each step: must not wait for the reading
    look()
    part.maybe_finalize_async_save(finalize)
    look()
    release.set()
    part.maybe_finalize_async_save(finalize, True)  # as before the end of the loop
    look()
    return seen, len(listed_files(target))


def write_slowly(folder: str, rank: int) -> None:
    """What Megatron's worker process does."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"__{rank}_0.distcp").write_bytes(bytes([rank]) * 100_000)


def test_a_save_in_the_background_is_read_in_the_background(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(STEPS).recipe("background", *TWO)
    run = RunFolder(recipe.run_folder)
    env = run.prepare(recipe).environment
    for seen, files in run_ranks(saved_in_the_background, 2, str(run.path), env=env):
        assert seen == [(True, False), (True, False), (True, False), (True, True)] and files == 2
    assert verify(checkpoint_folder(run.checkpoints, 5)).state == "verified"
    (saved,) = read_lines(run.checkpoints_log)
    assert (saved["event"], saved["step"], saved["bytes"]) == ("saved", 5, 200_000)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """An exception with its cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause", "kind"),
    [
        (KeyError("optimizer.state"), None, "content"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None, "content"),
        (RuntimeError("failed"), OSError(errno.ESTALE, "Stale file handle"), "read"),
        (AssertionError("metadata is None: [Errno 5] Input/output error"), None, "read"),
        (MemoryError(), None, "machine"),
        (RuntimeError("CUDA error: device-side assert triggered"), None, "machine"),
        (PermissionError(errno.EACCES, "Permission denied"), None, "machine"),
        (OSError(errno.EMFILE, "Too many open files"), None, "machine"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234"), None, "peer"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None, "peer"),
    ],
)
def test_failures_to_load_are_told_apart(
    error: BaseException, cause: BaseException | None, kind: str
) -> None:
    """Also where torch has wrapped them with those of other ranks."""
    from torch.distributed.checkpoint.api import CheckpointException

    from emma.tools.training.session.loading import _kind

    assert _kind(raised(error, cause)) == kind
    assert _kind(CheckpointException("load", {3: (raised(error, cause), None)})) == kind  # type: ignore[dict-item]
