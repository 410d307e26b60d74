"""Imports what a stage needs, once, and forks each run of its command: `python -m tests.faults.server ENTRY MODULES`.

One JSON object a line on standard input, one as answer. `{"do": "start", "argv": [...], "log": PATH, "limits": {...}}`
answers with a process id; `{"do": "wait", "pid": N, "seconds": S}` with its exit code, or null while it runs.
`{"do": "import", "modules": [...]}` imports what a command had imported when it ended (the list beside its log).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_CAPABILITIES = (1 << 1) | (1 << 2) | (1 << 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


def main() -> None:
    entry, *modules = sys.argv[1:]
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, name = entry.split(":")
    call = getattr(importlib.import_module(module), name)
    for each in modules:
        importlib.import_module(each)
    gc.collect()
    gc.freeze()
    answers.write(json.dumps("ready") + "\n")
    for line in requests:
        request = json.loads(line)
        if request["do"] == "start":
            answer: Any = os.fork()
            if answer == 0:
                requests.close()
                answers.close()
                _be_command(call, request)
        elif request["do"] == "import":
            answer = _import(request["modules"])
        else:
            answer = _wait(request["pid"], request["seconds"])
        answers.write(json.dumps(answer) + "\n")


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.003)


def _import(modules: list[str]) -> int:
    done = 0
    for module in modules:
        with suppress(Exception):
            importlib.import_module(module)
            done += 1
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # jemalloc, which pyarrow brings and which is not used here, prepares its thread for forks.
    others = [name for name in threads[1:] if name != "jemalloc_bg_thd"]
    assert not others, f"no safe fork: {others}"
    gc.collect()
    gc.freeze()
    return done


def _be_command(call: Any, request: dict[str, Any]) -> None:
    """Runs the command in this forked process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _limit(request["limits"])
        sys.argv = ["emma", *request["argv"]]
        try:
            call()
        finally:
            if request.get("modules"):
                Path(request["modules"]).write_text("\n".join(sys.modules))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Threads of a pool end with the interpreter; `atexit` handlers are the server's.
        os._exit(code)


def _limit(limits: dict[str, int]) -> None:
    if "files" in limits:
        used = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + limits["files"],) * 2)
    if "size" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["size"],) * 2)
    if "memory" in limits:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + limits["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if "group" in limits:
        # What was imported before the fork counts for the server, so the limit is that of the command's own memory.
        group = Path("/sys/fs/cgroup/memory/emma-faults")
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limits["group"]))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    if "override" in limits:
        _lose_override()


def _lose_override() -> None:
    """Root without the right to pass over permissions."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    header, data = Header(0x20080522, 0), (Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capget")
    data[0].effective &= ~_CAPABILITIES
    data[0].permitted &= ~_CAPABILITIES
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    main()
