"""The commands for data start where modules that only Linux or Unix has are missing, and work without what macOS lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_corpus, tiny_data
from tests.tiny_text import train_tokenizer

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


# What Linux has and macOS has not.
OF_LINUX = {
    "os": (
        *(
            "sched_getaffinity",
            "sched_setaffinity",
            "posix_fadvise",
            "posix_fallocate",
            "memfd_create",
            "fdatasync",
        ),
        *(
            "copy_file_range",
            "splice",
            "eventfd",
            "pidfd_open",
            "getrandom",
            "listxattr",
            "getxattr",
            "setxattr",
        ),
        *("O_DIRECT", "O_TMPFILE", "O_PATH", "setns", "unshare", "getresuid", "statx"),
    ),
    "select": ("epoll",),
    "signal": ("sigtimedwait", "sigwaitinfo", "SIGRTMIN", "SIGRTMAX", "pidfd_send_signal", "SIGPWR"),
    "time": ("CLOCK_BOOTTIME",),
    "resource": ("prlimit",),
    "socket": ("AF_NETLINK",),
}

AS_ON_MACOS = f"""
import os, select, signal, socket, resource, sys, time
for module, names in {OF_LINUX!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)

def absent(path):
    if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(("/proc/", "/sys/", "/dev/shm")):
        raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))

def without(call):
    def guarded(path, *more, **options):
        absent(path)
        return call(path, *more, **options)
    return guarded

for name in ("stat", "lstat", "listdir", "scandir", "readlink", "statvfs"):
    setattr(os, name, without(getattr(os, name)))
sys.addaudithook(lambda event, values: absent(values[0]) if event == "open" else None)
import emma.cli
emma.cli.main()
"""


def test_the_commands_for_data_work_without_what_macos_lacks(tmp_path: Path) -> None:
    make_tiny_corpus(tmp_path / "corpus")
    data = tiny_data().model_dump(mode="json")
    run = write_small_run(tmp_path, data, train_tokenizer(tmp_path / "tokenizer"))
    one = ["--workers", "1"]
    for words in (
        ["pack", "run", *one],
        ["pack", "verify", *one],
        ["mix", "build"],
        ["mix", "verify"],
        ["plan"],
    ):
        noun, *rest = words
        verb = [] if noun == "plan" else [rest.pop(0)]
        command = [sys.executable, "-P", "-c", AS_ON_MACOS, noun, *verb, str(run), *rest]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
