"""Starts the ranks of a run on this machine and watches them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

import orjson
from tqdm import tqdm

from emma.base.errors import CheckFailedError
from emma.base.progress import progress
from emma.recipes.networks import network
from emma.recipes.schema import Recipe
from emma.tools.runs.run_folder import GOES_BACK, Launch, RunFolder
from emma.tools.training.forked import can_fork, is_alone

__all__ = [
    "compute_reference",
    "launch_command",
    "rank_environment",
    "run_launch",
    "train_here",
]


def launch_command(recipe: Recipe, run: RunFolder, logs: str) -> list[str]:
    """The command line that starts the ranks: torchrun on one machine, srun under Slurm; in a sweep on this machine, one
    rank on a CPU is forked from a process that has imported what it needs."""
    if is_alone(recipe) and can_fork(rank_environment(recipe)):
        return [sys.executable, "-P", "-m", "emma.tools.training.forked", "rank", str(run.path), logs]
    if recipe.cluster.launcher == "srun":
        # Without torchrun, which would swallow Slurm's signals and kill ranks that are saving.
        output = f"--output={logs}/rank-%t.log"
        return [
            "srun",
            "--kill-on-bad-exit=1",
            output,
            *(sys.executable, "-P", "-m", "emma.tools.training.worker"),
            str(run.path),
        ]
    return [
        *(
            sys.executable,
            "-P",
            "-m",
            "emma.tools.training.torchrun",
            "--standalone",
            f"--nproc-per-node={recipe.cluster.gpus_per_node}",
        ),
        *(f"--log-dir={logs}", "--redirects=3"),
        # torchrun itself would start `python -m` without -P, and a folder in the working directory could
        # shadow this package.
        *("--no-python", sys.executable, "-P", "-m", "emma.tools.training.worker", str(run.path)),
    ]


def rank_environment(recipe: Recipe) -> dict[str, str]:
    """Environment variables that every rank gets besides the caller's: the network's, the cluster's, then the run's."""
    # Megatron requires it where tensor- and sequence-parallel kernels must not overtake each other (up to
    # Hopper).
    defaults = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONUNBUFFERED": "1"}
    if recipe.cluster.device == "cpu":
        defaults["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // recipe.cluster.world_size))
    if recipe.logging.wandb_offline:
        defaults["WANDB_MODE"] = "offline"
    fabric = network(recipe.cluster.network).environment
    return {**defaults, **fabric, **recipe.cluster.environment, **recipe.environment}


def train_here(recipe: Recipe, run: RunFolder, launch: Launch) -> None:
    """Runs a prepared launch, and another one each time it goes back, to skip a step or to an earlier checkpoint.

    Raises:
        CheckFailedError: a rank failed; the message quotes the end of its log.
        UserError: no checkpoint of the run can be used.
    """
    compute_reference(recipe, run, launch)
    while run_launch(recipe, run, launch) in GOES_BACK:
        print(run.why_it_goes_back(launch), file=sys.stderr, flush=True)
        launch = run.prepare(recipe)


def compute_reference(recipe: Recipe, run: RunFolder, launch: Launch) -> None:
    """Writes `reference.json` if the launch will compare with it and it does not exist yet.

    Raises:
        CheckFailedError: the base model's loss could not be computed.
    """
    if launch.load.mode != "weights" or recipe.start.reference is None or run.reference_file.is_file():
        return
    command = [sys.executable, "-P", "-m", "emma.tools.training.reference", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        run.release_claim(launch)
        raise CheckFailedError(f"the base model's loss could not be computed:\n{done.stderr[-2000:]}")


def run_launch(recipe: Recipe, run: RunFolder, launch: Launch) -> str:
    """Starts the ranks, shows their progress, passes signals on to them and waits for them to end.

    Returns:
        `finished`; `stopped` after a signal, with a complete checkpoint; one of `GOES_BACK` if another launch
        must follow.

    Raises:
        CheckFailedError: a rank failed; the message quotes the end of its log.
    """
    command = launch_command(recipe, run, launch.logs)
    # In a session of its own, Ctrl-C reaches the ranks once, through this process, and not a second time from
    # the terminal.
    child = subprocess.Popen(
        command,
        env={**os.environ, **rank_environment(recipe), **launch.environment},
        start_new_session=True,
        stdout=(Path(launch.logs) / "launcher.log").open("ab"),
        stderr=subprocess.STDOUT,
    )
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        name = signal.Signals(number).name
        print(f"{name}: the ranks save after this step and stop", file=sys.stderr, flush=True)
        child.send_signal(signal.SIGTERM)

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _watch(child, recipe, run, launch.trial or recipe.schedule.steps)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    ended = run.outcome(launch)
    run.release_claim(launch)
    if ended is not None:
        return ended
    raise CheckFailedError(f"training failed (exit code {child.returncode}).\n{_failure(Path(launch.logs))}")


def _watch(child: subprocess.Popen[bytes], recipe: Recipe, run: RunFolder, last: int) -> None:
    """Shows a progress bar over steps up to `last` until the ranks end, fed by new lines of `metrics.jsonl`."""
    position = run.metrics_file.stat().st_size if run.metrics_file.is_file() else 0
    first = run.latest_step()
    bar: tqdm[int] = progress(total=last, initial=first, unit="step", desc=recipe.name, smoothing=0.05)
    with bar:
        while True:
            ended = child.poll() is not None
            if run.metrics_file.is_file():
                with run.metrics_file.open("rb") as handle:
                    handle.seek(position)
                    for line in handle:
                        if not line.endswith(b"\n"):
                            break
                        position += len(line)
                        row = orjson.loads(line)
                        if "loss" in row:
                            bar.update(max(0, row["step"] - bar.n))
                            speed = f"{row['tokens_per_second_per_gpu']:,.0f}"
                            bar.set_postfix_str(
                                f"loss {row['loss']:.3f}, {speed} tokens/s/GPU", refresh=False
                            )
            if ended:
                return
            time.sleep(0.2)


def _failure(logs: Path) -> str:
    """End of the most telling log: the first rank's whose output ends in an error, else the launcher's."""
    candidates = [*sorted(logs.rglob("stderr.log")), *sorted(logs.glob("rank-*.log")), logs / "launcher.log"]
    found = None
    for path in candidates:
        if not path.is_file():
            continue
        with path.open(errors="replace") as handle:
            tail = list(deque(handle, maxlen=40))
        text = "".join(tail)
        if "Error" in text or "error:" in text:
            # A rank that lost its peer only reports the lost connection; the one that failed first says why.
            is_echo = "Connection closed by peer" in text or "Connection reset by peer" in text
            if found is None or not is_echo:
                found = (path, tail)
                if not is_echo:
                    break
    if found is None:
        return f"The ranks left no error message; their output is in {logs}"
    path, tail = found
    return f"End of {path}:\n" + "".join(f"  {line}" for line in tail[-25:])
