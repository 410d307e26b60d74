"""`emma train` as a user runs it: torchrun, real processes, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import emma as emma_package
from emma.base.files import read_json
from emma.tools.runs.environment import source_commit
from emma.tools.runs.fence import Claims
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import _failure
from tests.command_line import emma
from tests.foreign_packages import write_foreign_packages
from tests.tools.training.conftest import Small
from tests.training_run import losses

EMMA = [str(Path(sys.executable).with_name("emma"))]


@pytest.fixture(scope="module")
def other_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout, with packages of our names, none of which may be imported."""
    folder = tmp_path_factory.mktemp("other")
    write_foreign_packages(folder)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def overrides(small: Small, name: str) -> list[str]:
    start = f"start={{mode: weights, checkpoint: '{small.base}'}}"
    return [str(small.folder / "small.yaml"), f"name={name}", start]


@pytest.mark.slow
def test_stop_and_resume(make_small: Callable[[int], Small], base_model: Path, other_clone: Path) -> None:
    """Two ranks over torchrun, checked against the base model first; SIGTERM to `emma train` saves and exits
    0, and the same command resumes."""
    small = make_small(20)
    start = f"start={{mode: weights, checkpoint: '{small.base}', reference: '{base_model}'}}"
    layout = ("cluster.gpus_per_node=2", "parallelism.tensor=2")
    command = ["train", *overrides(small, "command"), start, *layout]
    run = RunFolder(small.folder / "runs" / "command")
    reached = stopped_by_sigterm(command, other_clone, run, 5)
    assert 5 <= reached < 20
    assert read_json(run.reference_file)["model"] == str(base_model)
    second = subprocess.run([*EMMA, *command], capture_output=True, text=True, cwd=other_clone, timeout=600)
    assert second.returncode == 0, second.stderr
    assert "finished at step 20" in second.stdout and sorted(losses(run)) == list(range(1, 21))


def test_sigterm_to_the_command_saves_and_ends_well(
    make_small: Callable[[int], Small], other_clone: Path
) -> None:
    """One rank over torchrun, called in another clone; the same command would resume, and where all steps are
    done there is nothing to do."""
    small = make_small(10)
    command = ["train", *overrides(small, "stopped"), "checkpoint.interval=1000"]
    run = RunFolder(small.folder / "runs" / "stopped")
    reached = stopped_by_sigterm(command, other_clone, run, 2)
    package = Path(emma_package.__file__).resolve().parent
    facts = read_json(run.environment_file)
    # A file that is edited while the test runs makes the checkout dirty in between.
    named, here = (str(commit).removesuffix("-dirty") for commit in (facts["commit"], source_commit(package)))
    assert facts["package"] == str(package) and named == here
    again = emma(*command, "--dry-run")
    if reached < 10:
        assert again.code == 0 and f"resumes from step {reached}, to step 10" in again.out
    else:
        assert again.code == 0 and "nothing to do" in again.out


def stopped_by_sigterm(command: list[str], folder: Path, run: RunFolder, step: int) -> int:
    """Starts `emma` in a folder, sends it SIGTERM at a step, and returns the step of the checkpoint it
    left."""
    log = folder / f"{run.path.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen([*EMMA, *command], stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        deadline = time.monotonic() + 240
        while max(losses(run), default=0) < step:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
    reached = run.latest_step()
    assert "SIGTERM: the ranks save after this step and stop" in log.read_text()
    assert f"stopped at step {reached} of " in log.read_text() or reached == 10
    assert run.claims.writer() is None
    return reached


@pytest.mark.slow
def test_a_failing_rank_is_one_message(make_small: Callable[[int], Small]) -> None:
    """A damaged base fails in the ranks; the user sees why and where the logs are."""
    small = make_small(10)
    damaged = small.folder / "damaged"
    subprocess.run(["cp", "-r", str(small.base), str(damaged)], check=True)
    shard = max(damaged.rglob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = os.urandom(4096)
    shard.write_bytes(content)
    name, run_file = "damaged", str(small.folder / "small.yaml")
    result = emma("train", run_file, f"name={name}", f"start={{mode: weights, checkpoint: '{damaged}'}}")
    assert result.code == 1
    assert "error: training failed" in result.err and "End of" in result.err
    assert Claims(small.folder / "runs" / name).writer() is None


def test_the_end_of_the_log_that_tells_most_is_shown(tmp_path: Path) -> None:
    """A rank that lost its peer only reports the connection; the one that failed says why."""
    for rank, text in enumerate(
        ["RuntimeError: Connection closed by peer\n", "loading\nValueError: shard 3 is damaged\n", "fine\n"]
    ):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "stderr.log").write_text(text)
    said = _failure(tmp_path)
    assert said.startswith(f"End of {tmp_path}/1/stderr.log:") and "ValueError: shard 3 is damaged" in said
    for rank in range(3):
        (tmp_path / str(rank) / "stderr.log").write_text("")
    assert _failure(tmp_path) == f"The ranks left no error message; their output is in {tmp_path}"


def test_print_command_and_dry_run_start_nothing(make_small: Callable[[int], Small]) -> None:
    small = make_small(10)
    shown = emma("train", *overrides(small, "shown"), "--print-command")
    assert shown.code == 0, shown.err
    assert "emma.tools.training.torchrun" in shown.out and "--num-layers" in shown.out
    dry = emma("train", *overrides(small, "shown"), "--dry-run")
    assert dry.code == 0 and "80 samples of 32 tokens" in dry.out
    facts = json.loads(emma("train", *overrides(small, "shown"), "--dry-run", "--json").out)
    assert (facts["step"], facts["steps"]) == (0, 10) and facts["run"].endswith("/runs/shown")
    assert not (small.folder / "runs" / "shown").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.steps=11", "steps × batch.global = 11 × 8 = 88 samples, but .* holds 80"),
        ("batch.sequence_length=64", "64, but .* was built for 32"),
        ("validation.groups=[nowhere]", "`nowhere` is not a group"),
        ("data.name=other", "the mix does not exist. Fix: `emma mix build"),
        ("logging.wandb_offline=true", "wandb_offline does nothing without wandb_project"),
        ("start={mode: weights, checkpoint: nowhere}", "start.checkpoint: nowhere does not exist"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_ranks_start(
    override: str, message: str, make_small: Callable[[int], Small]
) -> None:
    small = make_small(10)
    result = emma("train", *overrides(small, "refused"), override)
    assert result.code == 2 and result.err.startswith("error: ")
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    assert not (small.folder / "runs" / "refused" / "checkpoints").exists()
