"""Runs the demo's steps one after another, records which are done, and continues after any interruption."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.base.processes import follow_parent
from emma.tools.demo.steps import Step, Stop
from emma.tools.runs.metrics import read_metrics

__all__ = ["Record", "exclusive", "run_steps"]


class Record:
    """Which steps are finished, with their commands and seconds: `<folder>/steps.json`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "steps.json"
        self.steps: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def done(self, step: Step) -> bool:
        """Whether the step was finished with this command and its output still exists."""
        known = self.steps.get(step.name, {})
        return known.get("command") == list(step.command) and all(path.exists() for path in step.outputs)

    def finish(self, step: Step, seconds: float) -> None:
        """Records a finished step on disk."""
        self.steps[step.name] = {"command": list(step.command), "seconds": round(seconds, 1)}
        write_json(self.path, self.steps)


@contextmanager
def exclusive(folder: Path, patience: float = 180.0) -> Iterator[IO[Any]]:
    """Holds `<folder>/.lock`. Steps inherit it, so it becomes free only when an earlier demo's last step has ended.

    Raises:
        UserError: another demo kept it for `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        end = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UserError(
                        f"{folder}: another demo is running in this folder. Fix: wait for it, or stop it"
                    ) from None
                if not told:
                    click.echo("waiting for a step of an earlier demo to end ...")
                    told = True
                time.sleep(0.5)
        yield lock


def run_steps(steps: Sequence[Step], record: Record, lock: IO[Any]) -> bool:
    """Runs the steps that are not done yet, in order. A step that was interrupted runs again: every command starts over
    or continues by itself.

    Returns:
        Whether any step had to run.

    Raises:
        CheckFailedError: a command failed; the steps finished before it stay done.
    """
    ran = False
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.title}"
        if record.done(step):
            click.echo(f"{head}: done")
            continue
        ran = True
        click.secho(f"\n{head}", bold=True)
        click.echo(f"$ {shlex.join(step.command)}")
        started = time.monotonic()
        if step.stop is not None and _latest(step.stop.run) >= step.stop.step:
            click.echo(f"step {step.stop.step} was already reached")
        elif (code := _wait(_start(step, lock), step.stop)) and not (
            code in step.accepts and all(path.exists() for path in step.outputs)
        ):
            raise CheckFailedError(
                f"`{shlex.join(step.command)}` ended with exit code {code}. Finished steps are kept. "
                "Fix: run the same command again to continue"
            )
        seconds = time.monotonic() - started
        record.finish(step, seconds)
        click.secho(f"{seconds:.0f} s", dim=True)
    return ran


def _start(step: Step, lock: IO[Any]) -> subprocess.Popen[bytes]:
    """Starts a step's command with this interpreter; the command gets SIGTERM if this process dies."""
    program, *arguments = step.command
    module = ["-P", "-m", "emma.cli"] if program == "emma" else []
    # Waiting threads give up their core; otherwise a busy machine crawls.
    environment = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    sys.stdout.flush()
    return subprocess.Popen(
        [sys.executable, *module, *arguments],
        env=environment,
        pass_fds=(lock.fileno(),),
        preexec_fn=follow_parent(),
    )


def _wait(child: subprocess.Popen[bytes], stop: Stop | None = None) -> int:
    """Waits for a command to end and sends it SIGTERM at the given step, as a cluster's scheduler would.

    Ctrl-C reaches the command from the terminal; it gets time to save before this process ends too.
    """
    try:
        while stop is not None and child.poll() is None:
            if (step := _latest(stop.run)) >= stop.step:
                click.echo(f"\nstep {step} reached: SIGTERM")
                child.send_signal(signal.SIGTERM)
                stop = None
            time.sleep(0.2)
        return child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise


def _latest(run: Path) -> int:
    """Last step that a run logged, 0 if none."""
    rows = read_metrics(run / "metrics.jsonl")[0]
    return int(rows[-1]["step"]) if rows else 0
