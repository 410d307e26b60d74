"""The commands for data start where modules that only Linux or Unix has are missing."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("fcntl", "resource", "grp", "pwd", "termios")

SCRIPT = f"""
import importlib, os, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {BLOCKED!r}:
            raise ModuleNotFoundError(name, name=name)

for name in {BLOCKED!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Block())
for name in ("sched_getaffinity", "posix_fadvise", "posix_fallocate", "memfd_create"):
    if hasattr(os, name):
        delattr(os, name)
import emma.cli
for noun in ("recipe", "corpus", "pack", "mix", "plan", "slurm", "report", "release", "help", "doctor"):
    importlib.import_module(emma.cli.COMMANDS[noun][0].split(":")[0])
for module in (
    "corpus.build", "corpus.statistics", "corpus.release.build", "pack.run", "pack.verify", "mix.build", "mix.verify",
    "plan.plan", "report.page", "report.compare", "hub.upload", "doctor",
):
    importlib.import_module(f"emma.tools.{{module}}")
importlib.import_module("emma.slurm.submit")
from emma.base.processes import available_cores
from emma.base.system_errors import explain
assert available_cores() >= 1
assert "belongs to" in str(explain(PermissionError(13, "no", "/")))
sys.argv = ["emma", "recipe", "list"]
emma.cli.main()
"""


def test_no_module_of_linux_alone_is_needed_to_start() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
