"""Slurm's accounting for the test cluster: MariaDB and slurmdbd, with all their files in one folder."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

__all__ = ["ACCOUNT", "PROGRAMS", "configuration", "start_accounting"]

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults")
ACCOUNT = "project_1"

_DATABASE_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""


def configuration(folder: Path, host: str, port: int) -> str:
    """Lines for `slurm.conf`: jobs need an account that the database knows."""
    return (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        f"AccountingStorageHost={host}\n"
        f"AccountingStoragePort={port}\n"
        # With munge, this is its daemon's socket, not a password.
        f"AccountingStoragePass={folder}/munge.socket\n"
        "AccountingStorageEnforce=associations\n"
        "JobAcctGatherType=jobacct_gather/linux\n"
    )


def start_accounting(folder: Path, port: int, database_port: int) -> None:
    """Starts MariaDB and slurmdbd; munged must run."""
    data, password = folder / "mariadb", secrets.token_hex(8)
    # The machine's own configuration must not affect this server.
    own = ["--no-defaults", "--user=root", f"--datadir={data}"]
    _run(["mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db"])
    # Statements that the server runs at start-up, since there is no client.
    setup = folder / "mariadb.sql"
    setup.write_text(
        f"CREATE USER slurm@'%' IDENTIFIED BY '{password}';\nGRANT ALL ON slurm_acct.* TO slurm@'%';\n"
    )
    with (folder / "mariadbd.log").open("ab") as log:
        subprocess.Popen(
            [
                *("mariadbd", *own, f"--port={database_port}", "--bind-address=127.0.0.1"),
                *(f"--socket={folder}/mariadb.socket", f"--pid-file={folder}/mariadbd.pid"),
                *("--skip-name-resolve", f"--init-file={setup}"),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _wait_for_port(database_port, folder / "mariadbd.log")
    host = socket.gethostname().split(".")[0]
    text = _DATABASE_DAEMON.format(
        folder=folder, host=host, port=port, database_port=database_port, password=password
    )
    file = folder / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(text)
    # It looks for its file beside the one named by SLURM_CONF.
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    _run(["slurmdbd"], environment)
    _wait_for_port(port, folder / "slurmdbd.log")


def _path() -> str:
    return ":".join(sorted({str(Path(found).parent) for name in PROGRAMS if (found := shutil.which(name))}))


def _wait_for_port(port: int, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > end:
                text = log.read_text(errors="replace") if log.is_file() else "no log"
                raise TimeoutError(f"nothing listens on port {port}:\n{text[-2000:]}") from None
            time.sleep(0.2)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
