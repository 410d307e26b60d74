"""Proof that the sandbox holds on this machine: programs that try to get out, each of which must fail."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox.sandbox import Limits, Outcome, Sandbox, Step

__all__ = ["ATTACKS", "Attack", "prove"]

_HELD = 42
"""Exit code of a program that tried, and was held. Zero is one that got out; anything else says nothing, and so fails
the proof as well."""

_LIMITS = Limits(memory=192 << 20, processes=24, disk=24 << 20, file=8 << 20, open_files=64)
"""Small, so that running into them takes no time; their mechanism is the same."""


@dataclass(frozen=True)
class Attack:
    """A Python program and how it must end: an exit code, or what stops it.

    `{port}`, `{name}`, `{secret}`, `{home}`, `{shown}`, `{variables}` and `{pid}` in it are a listening port, a
    listening abstract socket, a file of this user's, the home folder, the folders shown, the names of environment
    variables and the process outside.
    """

    name: str
    program: str
    ends: tuple[int | str, ...] = (_HELD,)
    seconds: float = 20.0


ATTACKS = (
    Attack(
        "a harmless program runs: threads, a child, files of its own",
        """
import os, subprocess, sys, threading
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
open("file", "w").write("text")
child = subprocess.run([sys.executable, "-I", "-c", "print(open('/tmp/file').read())"], capture_output=True)
sys.exit(0 if len(done) == 4 and child.stdout == b"text\\n" else 1)
""",
        ends=(0,),
    ),
    Attack("a program that fails is seen to fail", "raise SystemExit(3)", ends=(3,)),
    Attack(
        "reach the network",
        """
import socket, sys
got = [name for _, name in socket.if_nameindex() if name != "lo"]
for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {port})),
    (socket.AF_UNIX, socket.SOCK_STREAM, "\\0{name}"),
    (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 9)),
):
    try:
        one = socket.socket(family, kind)
        one.settimeout(3)
        one.connect(address)
        one.send(b"out")
        got.append(address)
    except OSError:
        pass
print(got)
sys.exit(0 if got else 42)
""",
    ),
    Attack(
        "write outside",
        """
import os, sys
got = []
for path in ["{secret}", "/etc/passwd", "/new", "/proc/sys/kernel/core_pattern", *(f + "/new" for f in {shown!r})]:
    try:
        with open(path, "a") as handle:
            handle.write("x")
        got.append(path)
    except OSError:
        pass
mounts = [line.split() for line in open("/proc/mounts")]
got += [f[1] for f in mounts if "ro" not in f[3].split(",") and f[1] not in ("/proc", "/tmp") and f[1][:5] != "/dev/"]
print(got)
sys.exit(0 if got else 42)
""",
    ),
    Attack(
        "read the home folder and other secrets",
        """
import os, sys
got = []
for path in ["{secret}", "/proc/1/environ", "/proc/1/root{secret}", "/etc/shadow", "/proc/1/mem"]:
    try:
        with open(path, "rb") as handle:
            handle.read(1)
        got.append(path)
    except OSError:
        pass
try:
    shown = {shown!r}
    got += [n for n in os.listdir("{home}") if not any((f + "/").startswith("{home}/" + n + "/") for f in shown)]
except OSError:
    pass
got += [name for name in os.environ if name not in {variables!r}]
print(got)
sys.exit(0 if got else 42)
""",
    ),
    Attack(
        "see or end other processes",
        """
import os, signal, sys
got = [name for name in os.listdir("/proc") if name.isdigit() and name not in ("1", str(os.getpid()))]
for pid in (1, {pid}):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
print(got)
sys.exit(0 if got else 42)
""",
    ),
    Attack(
        "gain privileges",
        """
import ctypes, os, sys
got = []
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
got += [key for key in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[key], 16)]
got += ["NoNewPrivs"] if status["NoNewPrivs"] != "1" else []
libc = ctypes.CDLL(None)
def succeeded(result):
    if result:
        raise OSError
tries = {{
    "setuid": lambda: os.setuid(0),
    "chroot": lambda: os.chroot("/tmp"),
    "unshare": lambda: succeeded(libc.unshare(0x10000000)),
}}
for name, call in tries.items():
    try:
        call()
        got.append(name)
    except OSError:
        pass
got += ["mount"] if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else []
print(got)
sys.exit(0 if got else 42)
""",
    ),
    Attack(
        "have any number of processes",
        """
import os, sys, time
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        sys.exit(42)
""",
    ),
    Attack(
        "fork without end",
        """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        ends=("time",),
        seconds=0.5,
    ),
    Attack(
        "outlive its end",
        """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(120)
    os._exit(0)
os.wait()
sys.exit(42)
""",
    ),
    Attack("outlive its time", "while True: pass", ends=("time",), seconds=0.5),
    Attack(
        "take more memory than allowed",
        """
import sys
try:
    held = bytearray(400 << 20)
except MemoryError:
    sys.exit(42)
""",
    ),
    Attack(
        "take more memory than allowed, shared by processes",
        """
import mmap, time
held = mmap.mmap(-1, 400 << 20)
for place in range(0, 400 << 20, 4096):
    held[place] = 1
time.sleep(10)
""",
        ends=("memory", "SIGKILL", "SIGBUS"),
    ),
    Attack(
        "take more memory than allowed, in files without names",
        """
import os, time
for number in range(50):
    os.write(os.memfd_create(str(number)), bytes(7 << 20))
time.sleep(10)
""",
        ends=("memory", "SIGKILL"),
    ),
    Attack(
        "fill the disk",
        """
import sys
try:
    for number in range(64):
        with open(str(number), "wb") as handle:
            handle.write(bytes(1 << 20))
except OSError:
    sys.exit(42)
""",
    ),
    Attack(
        "write a large file",
        """
import sys
try:
    with open("large", "wb") as handle:
        handle.write(bytes(16 << 20))
except OSError:
    sys.exit(42)
""",
        ends=(_HELD, "SIGXFSZ"),
    ),
)


def prove(show: Mapping[str, str], environment: Mapping[str, str], cell: Path | None = None) -> None:
    """Runs every attack.

    Args:
        show: what the sandbox shows, with the Python that runs the attacks.
        environment: its variables, with a path to `python3`.
        cell: another inside of the sandbox than its own, which tests of this proof give.

    Raises:
        UserError: the machine does not allow the isolation, or an attack got out; the message names it.
    """
    sandbox = Sandbox(show, environment, _LIMITS, cell)
    with _targets() as targets, ThreadPoolExecutor(4) as pool:
        variables = ["HOME", "TMPDIR", "LC_CTYPE", *environment]
        facts = {**targets, "shown": sorted(set(show.values())), "variables": variables, "pid": os.getpid()}

        def attempt(attack: Attack) -> Outcome:
            program = attack.program.format(**facts) if "{" in attack.program else attack.program
            step = Step(["python3", "-I", "program.py"], attack.seconds)
            try:
                return sandbox.run({"program.py": program}, [step])
            except RuntimeError as error:
                return _refuse(attack.name, str(error))

        for attack, outcome in zip(ATTACKS, pool.map(attempt, ATTACKS), strict=True):
            end = outcome.stopped or outcome.code
            if end not in attack.ends:
                _refuse(attack.name, outcome.describe())


def _refuse(what: str, how: str) -> NoReturn:
    raise UserError(
        f"the sandbox does not hold on this machine: `{what}` ended with {how}. No generated program was run; evaluate "
        "code on another machine or outside of this container, and leave its benchmarks out here"
    )


@contextmanager
def _targets() -> Iterator[dict[str, object]]:
    """Something to reach, to read and to overwrite; afterwards, whether it was.

    Raises:
        UserError: it was.
    """
    home = Path.home()
    place = home if home.is_dir() and os.access(home, os.W_OK) else None
    name = f"emma-sandbox-proof-{os.getpid()}-{os.urandom(4).hex()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
        tempfile.NamedTemporaryFile(prefix=".emma-sandbox-proof-", dir=place) as secret,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        os.fchmod(secret.fileno(), 0o644)  # only the sandbox keeps it, not its permissions
        secret.write(b"secret")
        secret.flush()
        for server in (port, abstract):  # they can be reached, only not from inside
            with socket.socket(server.family) as one:
                one.connect(server.getsockname())
            server.accept()[0].close()
            server.setblocking(False)
        number = port.getsockname()[1]
        yield {"port": number, "name": name, "secret": secret.name, "home": str(home)}
        for server in (port, abstract):
            try:
                server.accept()[0].close()
            except BlockingIOError:
                continue
            _refuse("reach the network", "a connection that arrived")
        if Path(secret.name).read_bytes() != b"secret":
            _refuse("write outside", "a file that was changed")
