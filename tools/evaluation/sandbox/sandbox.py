"""Runs commands on files that nobody has read, each job in a sandbox of its own (`cell.py` is its inside)."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox.cell import HOME, PATIENCE

__all__ = ["Limits", "Outcome", "Sandbox", "Step"]

_CELL = Path(__file__).with_name("cell.py")
_KEPT = 1 << 16
"""Bytes of each output that are kept, its last ones; the rest is read and forgotten."""

_KEPT_VARIABLES = ("LD_LIBRARY_PATH",)
"""What an interpreter may need to start."""

_GRACE = 30.0
"""Seconds beyond a job's own after which the sandbox itself must be broken."""


@dataclass(frozen=True)
class Limits:
    """What a job may use.

    Attributes:
        memory: bytes of a process's data, and of all processes and files together.
        processes: processes and threads.
        disk: bytes of all files.
        file: bytes of one file.
        open_files: open files of a process.
    """

    memory: int = 2 << 30
    processes: int = 128
    disk: int = 256 << 20
    file: int = 64 << 20
    open_files: int = 256


@dataclass(frozen=True)
class Step:
    """A command, run in the folder of the job's files, and the seconds that it may take, not counting those in which the
    machine gives it no processor (up to nine times as many)."""

    command: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        step: index of the last step that ran.
        code: its exit code; None if it was stopped.
        stopped: `time`, `memory` or the name of the signal that ended it; None if it exited.
        stdout, stderr: the last of what was written; to `stderr` by the last of all steps only.
        seconds: wall-clock time of the job.
    """

    step: int
    code: int | None
    stopped: str | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether all steps ran and exited with 0."""
        return self.code == 0

    def describe(self) -> str:
        """How it ended, with the end of what it said."""
        how = f"stopped: {self.stopped}" if self.stopped else f"exit code {self.code}"
        said = (self.stderr.strip() or self.stdout.strip())[-300:]
        return f"{how}{': ' + said if said else ''}"


class Sandbox:
    """Runs jobs, from any number of threads.

    Inside there are the files shown, read-only, and a folder in memory that is gone afterwards; no network, no other
    processes, no privileges. Whether that holds on this machine is for `proof.prove` to find out.

    Args:
        show: place inside → file or folder outside.
        environment: variables of the commands, which get no others.
        limits: what a job may use.
        cell: another inside than `cell.py`, which tests of the proof give.
    """

    def __init__(
        self,
        show: Mapping[str, str],
        environment: Mapping[str, str],
        limits: Limits,
        cell: Path | None = None,
    ) -> None:
        self.show, self.environment, self.limits = dict(show), dict(environment), limits
        self._cell = cell or _CELL
        # Something to mount on: in the job's own view only, so that it stays empty.
        self._root = tempfile.mkdtemp(prefix="emma-sandbox-")
        weakref.finalize(self, _remove, self._root)

    def run(self, files: Mapping[str, str], steps: Sequence[Step]) -> Outcome:
        """Runs commands on files, up to the first that fails.

        Args:
            files: name → text, in the folder where the commands run.
            steps: commands, with their limits of time.

        Raises:
            UserError: this machine does not allow the isolation, and nothing was run; a command cannot be started; or the
                sandbox was killed.
            RuntimeError: it does not end.
        """
        job = {
            "root": self._root,
            "show": self.show,
            "files": dict(files),
            "environment": {"HOME": HOME, "TMPDIR": HOME, **self.environment},
            "steps": [{"command": list(step.command), "seconds": step.seconds} for step in steps],
            "limits": asdict(self.limits),
        }
        started = time.monotonic()
        with tempfile.TemporaryFile() as handle:
            handle.write(json.dumps(job).encode())
            handle.seek(0)
            (answer, write) = os.pipe()
            try:
                # Without the rest of the caller's environment: tokens and keys are in it.
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(self._cell), str(write)],
                    stdin=handle,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(write,),
                    cwd="/",
                    env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                )
            finally:
                os.close(write)
        with process, os.fdopen(answer, "rb") as said:
            streams = [process.stdout, process.stderr, said]
            patience = PATIENCE * sum(step.seconds for step in steps) + _GRACE
            found = _collect(streams, started + patience)
            if found is None:
                process.kill()
                raise RuntimeError(f"{_CELL}: no answer {_GRACE:.0f} s after the limits of its steps")
        stdout, stderr, told = found
        return _outcome(stdout, stderr, told, time.monotonic() - started, self.show)


def _outcome(stdout: bytes, stderr: bytes, answer: bytes, seconds: float, show: Mapping[str, str]) -> Outcome:
    out, err = (text.decode("utf-8", errors="replace") for text in (stdout, stderr))
    if not answer:
        raise UserError(
            f"the sandbox ended without an answer ({err.strip()[-500:] or 'killed'}); if memory ran out, run fewer things "
            "beside it"
        )
    steps = json.loads(answer)
    if isinstance(steps, dict):
        if steps.get("isolated"):
            raise UserError(f"in the sandbox, {steps['error']}; what it needs is not among {', '.join(show)}")
        raise UserError(f"programs cannot be isolated on this machine ({steps['error']}): {remedy()}")
    return Outcome(len(steps) - 1, steps[-1]["code"], steps[-1]["stopped"], out, err, seconds)


def _collect(streams: Sequence[Any], deadline: float) -> list[bytes] | None:
    """Reads all streams to their ends, which come only when everything inside is gone; None: not by the deadline."""
    kept: dict[int, bytearray] = {stream.fileno(): bytearray() for stream in streams}
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() > deadline:
                return None
            for key, _ in selector.select(timeout=1.0):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                store = kept[key.fd]
                store += data
                del store[:-_KEPT]
    return [bytes(store) for store in kept.values()]


def remedy() -> str:
    """What forbids the isolation here, as far as the system says, and what would allow it."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
    if release < (5, 14):
        return f"it needs Linux 5.14 or later, and this is {os.uname().release}; evaluate on another machine"
    for name, forbidding, fix in (
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        path = Path("/proc/sys") / name
        if path.is_file() and path.read_text().strip() == forbidding:
            return f"user namespaces are forbidden here; ask the administrator for `{fix}`"
    return (
        "in a container, allow it user namespaces and a /proc of its own (docker: --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined; apptainer: no --contain), or "
        "evaluate outside of it"
    )


def _remove(folder: str) -> None:
    if os.path.isdir(folder):  # noqa: PTH112
        os.rmdir(folder)  # noqa: PTH106
