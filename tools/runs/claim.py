"""Who took a run for a launch, and whether that process is still alive. Needs no torch."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from emma.base.manifest import now

__all__ = ["Claim", "user"]


@dataclass(frozen=True)
class Claim:
    """Who took a run: `launches/NNNNNN.json`, written once.

    Attributes:
        number: 1, 2, ... within the run.
        writer: random token; number and token are the launch's identity.
        kind: `process` (dead with its process) or `job` (dead with its Slurm job: the process that claims ends first).
        host, pid, pid_namespace, user: the process that claimed.
        job, restart: Slurm's job and how often it had been requeued; None and 0 outside Slurm.
        started: when.
    """

    number: int
    writer: str
    kind: str
    host: str
    pid: int
    pid_namespace: str | None
    user: str
    job: str | None
    restart: int
    started: str

    @staticmethod
    def of_this_process(number: int, kind: str) -> Claim:
        """A claim with a new token."""
        return Claim(
            number,
            secrets.token_hex(8),
            kind,
            socket.gethostname(),
            os.getpid(),
            _pid_namespace(),
            user(),
            os.environ.get("SLURM_JOB_ID"),
            int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            now(),
        )

    def process_is_gone(self) -> bool:
        """Whether this machine can tell that the claim's process has ended."""
        # In another pid namespace (a container) on this host, the same number is another process.
        here = self.host == socket.gethostname() and self.pid_namespace == _pid_namespace()
        return here and self.kind == "process" and not _alive(self.pid)

    def __str__(self) -> str:
        writer = f"Slurm job {self.job} of {self.user}" if self.job else f"process {self.pid} of {self.user}"
        return f"{writer} on {self.host}"


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return str(os.getuid())


def _pid_namespace() -> str | None:
    """Name of this process's pid namespace; the host's own keeps its name across reboots."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
