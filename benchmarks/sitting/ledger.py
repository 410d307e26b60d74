"""The clock and the results of a sitting: each stage is recorded as soon as it ends, whatever becomes of the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import family
from emma.base.errors import UserError
from emma.base.files import write_json

__all__ = ["FAULTS", "Ledger", "OutOfTimeError", "PartlyFailedError", "run_command"]

_TAIL = 4000
FAULTS = (
    OSError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ImportError,
)
"""What a broken library or a bug in one stage raises: it must not take the others' time on the card with it."""


_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""What a command has said is wanted when it is killed too; and where there is no network, nobody waits for one."""


class OutOfTimeError(Exception):
    """A command was still running when its time was over; the message holds the end of its output."""


class PartlyFailedError(Exception):
    """A stage has failed, but what it found counts: `result`, as JSON."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class Ledger:
    """Runs stages while there is time, and keeps `results.json` and `log.txt` up to date.

    Args:
        folder: where both go.
        seconds: the whole sitting.
        without: stages to leave out; a name also stands for all that begin with it.
        patience: how many times as long as on a GPU machine a stage may take here.
    """

    def __init__(
        self, folder: Path, seconds: float, without: Sequence[str] = (), patience: float = 1.0
    ) -> None:
        self.without, self.patience = tuple(without), patience
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.log = folder / "results.json", folder / "log.txt"
        self._begun, self._seconds = time.monotonic(), seconds
        self.results: dict[str, dict[str, Any]] = {}
        self.log.write_text("", encoding="utf-8")

    @property
    def left(self) -> float:
        """Seconds until the sitting is over."""
        return self._seconds - (time.monotonic() - self._begun)

    def say(self, text: str) -> None:
        """A line on standard output and in the log, with the seconds since the start."""
        line = f"[{time.monotonic() - self._begun:4.0f} s] {text}"
        print(line, flush=True)
        with self.log.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    def stage(self, name: str, needs: float, limit: float, action: Callable[[float], Any]) -> Any:
        """Runs a stage, or says why not.

        Args:
            name: of the stage.
            needs: seconds without which it is not begun.
            limit: seconds that it may take at most on a GPU machine.
            action: gets its limit, returns its result as JSON.

        Returns:
            The result; None if the stage was left out, or failed without one.
        """
        begun, result = time.monotonic(), None
        if self.without and name.startswith(self.without):
            status = "left out: as asked"
        elif self.left < needs:
            status = f"left out: {self.left:.0f} of the {needs:.0f} s that it needs were left"
        else:
            try:
                result, status = action(min(limit * self.patience, self.left)), "done"
            except PartlyFailedError as error:
                result, status = error.result, f"failed: {error}"
            except (UserError, OutOfTimeError, subprocess.CalledProcessError) as error:
                status = f"failed: {error}"
            except FAULTS as error:
                status = f"failed: {type(error).__name__}: {error}"
                with self.log.open("a", encoding="utf-8") as handle:
                    handle.write(traceback.format_exc())
        seconds = time.monotonic() - begun
        self.results[name] = {"status": status, "seconds": round(seconds, 1), "result": result}
        write_json(self.file, self.results)
        self.say(f"{name}: {status.splitlines()[0]} ({seconds:.0f} s)")
        return result

    def leave_out(self, name: str, why: str) -> None:
        """Records a stage that cannot run here."""
        self.results[name] = {"status": f"left out: {why}", "seconds": 0.0, "result": None}
        write_json(self.file, self.results)


def run_command(
    ledger: Ledger,
    arguments: Sequence[str],
    limit: float,
    enough: Callable[[], bool] | None = None,
) -> tuple[int | None, str]:
    """Runs a Python command with all its output in the log.

    Args:
        ledger: whose log it is.
        arguments: after `python -P`.
        limit: seconds after which the command and all its processes are killed.
        enough: asked twice a second; once it says so, they are killed too.

    Returns:
        Exit code, None if it was killed because there was enough; and the output.

    Raises:
        OutOfTimeError: the time was over.
    """
    said = ledger.log.with_suffix(".part")
    with (
        said.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT},
        ) as process,
    ):
        deadline, over, code = time.monotonic() + limit, False, None
        while (code := process.poll()) is None:
            over = time.monotonic() > deadline
            if over or (enough is not None and enough()):
                for member in reversed(family(process.pid)):
                    _kill(member)
                break
            time.sleep(0.5)
    text = said.read_text(encoding="utf-8", errors="replace")
    with ledger.log.open("a", encoding="utf-8") as handle:
        handle.write(f"$ {' '.join(arguments)}\n{text[-60_000:]}\n")
    said.unlink()
    if over:
        raise OutOfTimeError(f"not done after {limit:.0f} s: {text[-_TAIL:]}")
    return code, text


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
