"""Processes in their own pid namespaces, as in containers: they share host and files, and all have the same id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

__all__ = ["Contained", "contained", "needs_pid_namespaces"]

_UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@cache
def _permitted() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def needs_pid_namespaces() -> None:
    """Skips a test where this user may not make pid namespaces."""
    if not _permitted():
        pytest.skip("needs `unshare --pid`, which root may call")


@dataclass
class Contained:
    """A command that runs as process 1 of its own pid namespace; its output goes to `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop_when(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Stops the command at a moment when `condition` holds, and still holds once it is stopped."""
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, f"it ended before\n{self.log.read_text()}"
            assert time.monotonic() < end, "the moment did not come"
            if condition():
                self._send(signal.SIGSTOP)
                time.sleep(0.05)
                if condition():
                    return
                self._send(signal.SIGCONT)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Waits until the command has printed something."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, f"it ended before\n{self.log.read_text()}"
            assert time.monotonic() < end, f"it did not say {text!r}\n{self.log.read_text()}"
            time.sleep(0.02)

    def succeeds(self, seconds: float = 120) -> None:
        """Waits for the end, which must be a success."""
        code = self.process.wait(seconds)
        assert code == 0, f"exit code {code}\n{self.log.read_text()}"

    def _send(self, number: signal.Signals) -> None:
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), number)


@contextmanager
def contained(log: Path, command: Sequence[str]) -> Iterator[Contained]:
    """Starts a command in its own pid namespace; it is killed at the end if it still runs."""
    environment = {**os.environ, "EMMA_PROGRESS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("wb") as handle:
        process = subprocess.Popen([*_UNSHARE, *command], env=environment, stdout=handle, stderr=handle)
    try:
        yield Contained(process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
