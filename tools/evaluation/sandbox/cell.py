"""The inside of the sandbox: a script that shuts itself in, runs a job's commands, and says how they ended.

`sandbox.py` starts it with the bare interpreter (`python -I -S cell.py`), so it imports the standard library alone, and
all of it before the machine's files are out of sight. It reads the job from standard input:

    {"root": empty folder, "show": {place inside: path outside}, "files": {name: text}, "environment": {...},
     "steps": [{"command": [...], "seconds": n}, ...],
     "limits": {"memory": bytes, "processes": n, "disk": bytes, "file": bytes, "open_files": n}}

and writes to the file descriptor that its argument names how each step ended, up to the first that failed:
`[{"code": n, "stopped": null | "time" | "memory" | signal}, ...]`, or `{"error": why}` if it could not shut itself in,
with `"isolated": true` if it could but not start a command.

Three processes: the first enters new namespaces (user, mount, pid, network, IPC, host name, control groups); its child
is process 1 of them, builds a file system of the shown paths, read-only, and one small folder in memory, and watches
time and memory; the programs are children of that. When process 1 ends, the kernel ends everything else in there, and
it ends if any process outside that waits for it does.
"""

from __future__ import annotations

# ruff: noqa: PTH103, PTH114, PTH115, PTH116, PTH120, PTH123, PTH208, PTH211 - without pathlib it starts sooner
import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import stat
import sys
import time
import warnings  # noqa: F401 - os.execvpe would import it when its file is out of sight

NOBODY = 65534
HOME = "/tmp"

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_MOUNT_SETATTR = 442
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = -100, 0x8000, 2
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _JOIN_SESSION_KEYRING = 1, 4, 38, 1
_DEVICES = ("null", "zero", "full", "random", "urandom")
_POLL = 0.02
PATIENCE = 10
"""Times a step's seconds after which it is stopped however starved its machine is."""

libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    _done(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    names = [None if name is None else name.encode() for name in (source, target, kind)]
    _done(libc.mount(*names, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def _restrict(target: str, flags: int, recursive: bool = True) -> None:
    """Sets attributes of a mount and, if `recursive`, of all mounts below it."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    deep = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    call = libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), deep, ctypes.byref(attributes), size)
    _done(call, f"mount_setattr {target}")


def _write(path: str, text: str) -> None:
    # Half a surrogate pair makes a program that no compiler takes, and no error here.
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as handle:
        handle.write(text)


def _enter() -> bool:
    """Enters the namespaces; the caller's children are in all of them. Returns whether root gave up its identity.

    Root takes nobody's identity along and wears it for programs: limits on processes do not hold for root. Anybody
    else is nobody inside and keeps their own identity outside.
    """
    mine = os.getuid()
    change = mine == 0 and _mapped(NOBODY)
    if change:
        os.setgroups([])
    ids = ["0 0 1", f"{NOBODY} {NOBODY} 1"] if change else [f"{NOBODY} {mine} 1"]
    groups = ["0 0 1", f"{NOBODY} {NOBODY} 1"] if change else [f"{NOBODY} {os.getgid()} 1"]
    (ready, go), me = os.pipe(), os.getpid()
    mapper = os.fork()
    if mapper == 0:  # only a process outside may map more than one identity
        os.close(go)
        if os.read(ready, 1):
            try:
                _write(f"/proc/{me}/setgroups", "deny")
                _write(f"/proc/{me}/gid_map", "\n".join(groups))
                _write(f"/proc/{me}/uid_map", "\n".join(ids))
            except OSError as error:
                os._exit(error.errno or 1)
        os._exit(0)
    os.unshare(
        os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWNET
        | os.CLONE_NEWIPC | os.CLONE_NEWUTS | os.CLONE_NEWCGROUP
    )  # fmt: skip
    os.write(go, b"1")
    os.close(go)
    code = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if code:
        raise OSError(code, f"user identities cannot be mapped: {os.strerror(code)}")
    return change


def _mapped(identity: int) -> bool:
    for table in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with open(table, encoding="ascii") as handle:
            rows = [[int(number) for number in line.split()] for line in handle]
        if not any(first <= identity < first + count for first, _, count in rows):
            return False
    return True


def _build(job: dict) -> None:
    """Builds the file system and makes it the only one."""
    root, limits = job["root"], job["limits"]
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=4m,mode=755")
    for place, path in job["show"].items():
        _show(path, root + place)
    for name in ("proc", "dev", "etc", HOME[1:]):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    _write(root + "/etc/passwd", f"nobody:x:{NOBODY}:{NOBODY}:nobody:{HOME}:/bin/sh\n")
    _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    # Who could make a user namespace would be root in it, and nearer to the kernel.
    _write(root + "/proc/sys/user/max_user_namespaces", "0")
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("shm", HOME)):
        os.symlink(target, f"{root}/dev/{name}")
    options = f"size={limits['disk']},nr_inodes=20000,mode=1777"
    _mount("tmpfs", root + HOME, "tmpfs", _NOSUID | _NODEV, options)
    for name, text in job["files"].items():
        _write(f"{root}{HOME}/{name}", text)
    os.chdir(root)
    _done(libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _done(libc.umount2(b".", _MNT_DETACH), "umount2")
    _restrict("/", _ATTR_RDONLY, recursive=False)
    os.chdir(HOME)
    # Leaves the keys of whoever runs this. Where keyctl is forbidden, it is so for the programs, too.
    if libc.syscall(_KEYCTL[platform.machine()], _JOIN_SESSION_KEYRING, None) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EPERM, errno.ENOSYS):
            raise OSError(number, f"keyctl: {os.strerror(number)}")


def _show(path: str, target: str) -> None:
    """Makes a file or folder visible, read-only, with all that is mounted below it."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if stat.S_ISDIR(os.stat(path).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        _write(target, "")
    _mount(path, target, None, _BIND | _REC)
    _restrict(target, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)


def _program(step: dict, job: dict, change: bool) -> None:
    """Becomes a step's command."""
    limits = job["limits"]
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    if step is not job["steps"][-1]:
        os.dup2(1, 2)
    for name, most in (
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_DATA, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))
    if change:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.umask(0o022)
    _prctl(_NO_NEW_PRIVS, 1)
    os.execvpe(step["command"][0], step["command"], job["environment"])


def _run(step: dict, job: dict, change: bool) -> dict:
    """Runs a step to its end, and ends all that it left running."""
    failed, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _program(step, job, change)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is no failure of the program
            os.write(told, f"{step['command'][0]} cannot be started: {error!r}".encode())
        os._exit(127)
    os.close(told)
    with open(failed, encoding="utf-8") as handle:
        if problem := handle.read():
            raise OSError(0, problem)
    started, before = time.monotonic(), _used_by_children()
    stopped, code = None, None
    while code is None and stopped is None:
        signal.sigtimedwait({signal.SIGCHLD}, _POLL)
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if ended == 0:
                break
            if ended == child:
                code = os.waitstatus_to_exitcode(status)
        if code is None and _had_its_time(time.monotonic() - started, step["seconds"], before):
            stopped = "time"
        elif code is None and _used() > job["limits"]["memory"]:
            stopped = "memory"
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            break
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    if code is not None and code < 0:
        stopped, code = signal.Signals(-code).name, None
    return {"code": code, "stopped": stopped}


def _had_its_time(passed: float, seconds: float, before: float) -> bool:
    """Whether a step has had its seconds. Those in which the machine let its programs wait for a processor don't count,
    unless they have used as many all the same (programs that wait for each other do not gain by it)."""
    if not seconds < passed <= PATIENCE * seconds:
        return passed > seconds
    used, waited = _used_by_children() - before, 0.0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{name}/task"):
                    # Nanoseconds on a processor, and in the queue for one. (Kernels without the file grant nothing.)
                    with (
                        contextlib.suppress(OSError),
                        open(f"/proc/{name}/task/{thread}/schedstat") as handle,
                    ):
                        ran, queued = handle.read().split()[:2]
                        used += int(ran) / 1e9
                        waited += int(queued) / 1e9
    return used > seconds or passed - waited > seconds


def _used_by_children() -> float:
    """Processor seconds of all that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _used() -> int:
    """Bytes that all programs and their files hold in memory."""
    disk = os.statvfs(HOME)
    total = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    nameless: dict = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        # A process may end, and a file be closed, while it is looked at.
        with contextlib.suppress(OSError), open(f"/proc/{name}/status", "rb") as handle:
            for line in handle:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total += 1024 * int(line.split()[1])
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{name}/fd"):
                with contextlib.suppress(OSError):
                    _count_nameless(os.stat(f"/proc/{name}/fd/{number}"), nameless)
    return total + sum(nameless.values())


def _count_nameless(file: os.stat_result, sizes: dict) -> None:
    """Counts a file that is in memory and in no folder (memfd)."""
    if stat.S_ISREG(file.st_mode) and file.st_nlink == 0 and file.st_dev != os.stat(HOME).st_dev:
        sizes[file.st_dev, file.st_ino] = 512 * file.st_blocks


def _inside(job: dict, change: bool) -> list | dict:
    """Process 1: all steps, up to the first that fails."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getpid() != 1:  # it ends all processes that it sees
        raise OSError(0, "it has no processes of its own")
    _build(job)
    _prctl(_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended: list = []
    for step in job["steps"]:
        try:
            ended.append(_run(step, job, change))
        except OSError as error:
            return {"error": error.strerror, "isolated": True}
        if ended[-1]["code"] != 0:
            break
    return ended


def main() -> None:
    """Reads a job and runs it."""
    answer = int(sys.argv[1])
    os.set_inheritable(answer, False)
    parent = os.getppid()
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    job = json.load(sys.stdin)
    try:
        if platform.machine() not in _PIVOT_ROOT:
            raise OSError(0, f"it knows no processor of the kind {platform.machine()}")
        change = _enter()
        child = os.fork()
        if child == 0:
            try:
                result: object = _inside(job, change)
            except OSError as error:
                result = {"error": error.strerror}
            os.write(answer, json.dumps(result).encode())
            os._exit(0)
        os.waitpid(child, 0)
    except OSError as error:
        os.write(answer, json.dumps({"error": error.strerror}).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
