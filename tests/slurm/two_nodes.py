"""A real Slurm with two nodes on this machine: munged, slurmctld, and two slurmd, with all their files in one
folder.

    python -m tests.slurm.two_nodes start FOLDER      # prints `export SLURM_CONF=...`
    python -m tests.slurm.two_nodes stop FOLDER
    python -m tests.slurm.two_nodes check             # exit code 1 if something is not installed

Needs root, `slurm-wlm`, and `munge`; with accounting, also `slurmdbd` and MariaDB. Writes nothing outside
FOLDER and leaves the machine's daemons alone. Both nodes are this machine and share its cores: the
configuration claims more cores than it may have.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port
from tests.slurm.accounting import ACCOUNT, PROGRAMS, configuration, start_accounting

__all__ = ["CPUS", "NODES", "TwoNodes", "running_nodes"]

NODES = ("n1", "n2")
CPUS = 4
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")

# What matters here: lost nodes are noticed within seconds, requeued jobs wait seconds instead of two minutes
# for their credentials to expire, and finished jobs stay visible for a while.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=12
KillWait=5
MessageTimeout=30
MinJobAge=3600
ReturnToService=2
JobRequeue=1
MpiDefault=none
MailProg=/bin/true
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=06:00:00 State=UP
PartitionName=short Nodes=n1 MaxTime=00:05:00 State=UP
"""


def missing_programs(*, accounting: bool = False) -> list[str]:
    """Programs of Slurm and munge that this machine lacks."""
    return [name for name in (*_PROGRAMS, *(PROGRAMS if accounting else ())) if shutil.which(name) is None]


class TwoNodes:
    """The daemons of one test cluster, found by their pid files in `folder`."""

    def __init__(
        self, folder: Path, *, accounting: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        """`accounting`: with a database that keeps jobs and without whose accounts none runs; `settings`: further ones
        of `slurm.conf`, or other values of those that it has."""
        self.folder, self.accounting, self.settings = folder.resolve(), accounting, settings or {}
        self.configuration = self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Environment for `sbatch` and the other commands."""
        return {**os.environ, "SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        """Writes the configuration, starts the daemons, waits until both nodes are idle."""
        if missing := missing_programs(accounting=self.accounting):
            raise RuntimeError(f"missing programs: {', '.join(missing)} (`make test-slurm` installs them)")
        self.folder.mkdir(parents=True, exist_ok=True)
        # munged refuses a socket that other users cannot reach, and keys that they can read.
        self.folder.chmod(0o755)
        controller, database, daemon, *nodes = (free_port() for _ in range(3 + len(NODES)))
        host = socket.gethostname().split(".")[0]
        text = _CONFIGURATION.format(
            folder=self.folder,
            host=host,
            controller_port=controller,
            node_ports=",".join(map(str, nodes)),
            cpus=CPUS,
        )
        for name, value in self.settings.items():
            text = re.sub(rf"(?m)^{name}=.*\n", "", text) + f"{name}={value}\n"
        self.configuration.write_text(
            text + (configuration(self.folder, host, daemon) if self.accounting else "")
        )
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        _run(
            ["munged", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}"]
            + [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        )
        if self.accounting:
            start_accounting(self.folder, daemon, database)
            # The database must know the cluster before the controller starts and reads it; otherwise jobs are
            # refused.
            for name in ("cluster test", f"account {ACCOUNT} cluster=test", f"user root account={ACCOUNT}"):
                self.command("sacctmgr", "--immediate", "add", *name.split())
        self._start_controller("-c")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.node_states() == dict.fromkeys(NODES, "idle"), "both nodes are idle", 60)

    def restart_controller(self) -> None:
        """Ends the controller and starts it anew: it knows its jobs and nodes, and no message that it was to deliver."""
        for pid in self._pids("slurmctld"):
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 60
        while self._pids("slurmctld"):
            if time.monotonic() > end:
                raise TimeoutError("slurmctld does not end")
            time.sleep(0.2)
        self._start_controller()

    def _start_controller(self, *options: str) -> None:
        _run(["slurmctld", *options, "-f", str(self.configuration)], self.environment)

    def start_node(self, node: str) -> None:
        """Starts one `slurmd`; a lost node comes back."""
        # Step daemons inherit the variable, by which `stepd` finds a node's.
        _run(["slurmd", "-N", node, "-f", str(self.configuration)], {**self.environment, "TEST_NODE": node})

    def lose_node(self, node: str, *, ranks: bool) -> None:
        """Kills a node's `slurmd` and, with `ranks`, the job processes that it started; otherwise they keep
        running unwatched."""
        for pid in self._pids(f"slurmd-{node}"):
            os.kill(pid, signal.SIGKILL)
        for pid in self.stepd(node) if ranks else []:
            for child in [*_descendants(pid), pid]:
                _kill(child)

    def stepd(self, node: str) -> list[int]:
        """Process ids of a node's step daemons: each is the parent of a job step's tasks."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes()
                environment = (path / "environ").read_bytes()
            except OSError:
                continue
            if b"slurmstepd" in command and f"SLURM_CONF={self.configuration}".encode() in environment:
                found.append((int(path.name), environment))
        return [pid for pid, environment in found if f"TEST_NODE={node}".encode() in environment]

    def processes(self, node: str, *words: str) -> list[int]:
        """Process ids in a node's job steps whose command line contains all of `words`."""
        found = []
        for pid in {child for parent in self.stepd(node) for child in _descendants(parent)}:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if all(word in command for word in words) and "srun" not in command.split("\0")[0]:
                found.append(pid)
        return sorted(found)

    def cancel_all(self) -> None:
        """Cancels every job and waits until they are gone."""
        self.command("scancel", "--user=root")
        self.wait(lambda: not self.command("squeue", "--noheader").strip(), "no job is left", 60)

    def node_states(self) -> dict[str, str]:
        """State of each node, in `sinfo`'s words."""
        lines = self.command(
            "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"
        ).splitlines()
        return dict(line.split() for line in lines)

    def undelivered(self) -> int:
        """Messages to nodes that the controller still tries to deliver, such as signals for ranks on a lost node."""
        found = re.search(r"Agent queue size:\s+(\d+)", self.command("sdiag"))
        return int(found[1]) if found else 0

    def configure(self, name: str, value: str) -> None:
        """Changes a setting of `slurm.conf`, without a restart."""
        text = self.configuration.read_text()
        changed, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
        if count != 1:
            raise ValueError(f"{name} is set {count} times")
        self.configuration.write_text(changed)
        self.command("scontrol", "reconfigure")

    def command(self, *arguments: str) -> str:
        """Output of a Slurm command on this cluster."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits until `condition` holds; raises an error with `what` on timeout."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}\n{self.command('squeue', '--long')}")
            time.sleep(0.5)

    def stop(self) -> None:
        """Cancels all jobs, ends the daemons, and kills what still runs on the nodes."""
        if self._pids("slurmctld"):
            subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, check=False)
            time.sleep(1)
        names = [*(f"slurmd-{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"]
        for name in names:
            for pid in self._pids(name):
                os.kill(pid, signal.SIGTERM)
        for node in NODES:
            for pid in self.stepd(node):
                for child in [*_descendants(pid), pid]:
                    _kill(child)
        end = time.monotonic() + 20
        while any(self._pids(name) for name in names) and time.monotonic() < end:
            time.sleep(0.2)
        for name in names:
            for pid in self._pids(name):
                os.kill(pid, signal.SIGKILL)

    def _pids(self, name: str) -> list[int]:
        file = self.folder / f"{name}.pid"
        text = file.read_text().strip() if file.is_file() else ""
        if not text.isdigit() or not Path(f"/proc/{text}").is_dir():
            return []
        program = name.partition("-")[0].encode()
        command = Path(f"/proc/{text}/cmdline").read_bytes()
        return [int(text)] if program in command else []


@contextmanager
def running_nodes(
    folder: Path, *, accounting: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[TwoNodes]:
    """A cluster with its files in `folder`, stopped at the end in any case.

    Raises:
        RuntimeError: Slurm is not installed.
    """
    nodes = TwoNodes(folder, accounting=accounting, settings=settings)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [below for child in children for below in (*_descendants(int(child)), int(child))]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: list[str]) -> int:
    """`start FOLDER`, `stop FOLDER`, or `check` whether everything is installed."""
    if arguments == ["check"]:
        missing = missing_programs(accounting=True)
        print(f"not installed: {', '.join(missing)}" if missing else "Slurm and MariaDB are installed")
        return 1 if missing else 0
    if len(arguments) != 2 or arguments[0] not in ("start", "stop"):
        print("usage: python -m tests.slurm.two_nodes start|stop FOLDER, or check", file=sys.stderr)
        return 2
    nodes = TwoNodes(Path(arguments[1]))
    if arguments[0] == "start":
        nodes.start()
        print(f"export SLURM_CONF={nodes.configuration}")
    else:
        nodes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
