"""What goes wrong, in each stage, and what must hold then."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import Ended, Lab

__all__ = ["FAULTS", "Record", "try_fault"]

TEN_LEVELS = range(10)

LOCK = re.compile(r"(^|/)\.[^/]*lock$")
"""A lock's file, which a killed process leaves and the next one uses."""

SAID_OF_OTHERS = ("Traceback (most recent call last)", "Exception ignored", "terminate called", "panicked at")


@dataclass
class Record:
    """All trials of one fault in one stage.

    Attributes:
        codes: exit codes of the commands that met the fault, and how many there were of each.
        messages: what they said, each once, with `OUT` for the folder.
        faults: what does not hold.
    """

    codes: dict[int, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        return sum(self.codes.values())


class Trial:
    """Judges one command under a fault, then runs it again without."""

    def __init__(self, lab: Lab, record: Record) -> None:
        self.lab, self.record = lab, record

    def judge(
        self, label: str, ended: Ended, codes: set[int], *, again: bool = True, lossy: bool = False
    ) -> None:
        """A command met the fault; `codes` are its documented exit codes besides 0. `lossy`: the file system has lost
        what was not synced, so only what the second call makes of it counts."""
        lab, faults = self.lab, self.record.faults
        self.record.codes[ended.code] = self.record.codes.get(ended.code, 0) + 1
        if ended.code not in codes | {0}:
            faults.append(f"{label}: exit code {ended.code}\n{ended.said[-1500:]}")
        if ended.code > 0:
            self._message(label, ended.said)
        if ended.code == 0 and not lab.stage.stops_well:
            self._same(f"{label}: it said that all is well", hidden=False)
        if not lossy:
            faults += [f"{label}: half-written {name}" for name in lab.half_written()]
        if again:
            self.again(label)

    def again(self, label: str) -> None:
        """The second call ends with the bytes of an undisturbed run."""
        ended = self.lab.run()
        if ended.code == 2 and "exists; name another folder" in ended.said:
            self._same(f"{label}: the second call finds a result")
        elif ended.code:
            self.record.faults.append(f"{label}: the second call fails ({ended.code})\n{ended.said[-1500:]}")
        else:
            self._same(f"{label}: after the second call")

    def _same(self, label: str, *, hidden: bool = True) -> None:
        now, whole = self.lab.content(), self.lab.undisturbed
        names = {name for name in now.keys() | whole.keys() if not LOCK.search(name)}
        names = {name for name in names if hidden or "/." not in f"/{name}"}
        different = sorted(name for name in names if now.get(name) != whole.get(name))
        if different:
            self.record.faults.append(f"{label}, these differ: {', '.join(different[:6])}")

    def _message(self, label: str, said: str) -> None:
        for alien in SAID_OF_OTHERS:
            if alien in said:
                self.record.faults.append(f"{label}: {alien}\n{said[-2500:]}")
        found = re.findall(r"^(?:error: |interrupted).*", said, re.MULTILINE)
        if len(found) != 1:
            self.record.faults.append(f"{label}: {len(found)} messages\n{said[-1500:]}")
            return
        message = found[0].replace(str(self.lab.out), "OUT").replace(str(self.lab.inputs), "IN")
        message = re.sub(
            r"\d{4}-\d\d-\d\dT[\d:+]+", "TIME", re.sub(r"process \d+ on \S+", "process N on HOST", message)
        )
        message = re.sub(r"\.[^. /]+-\d+-[0-9a-f]{8}\.", ".….", message)
        if message not in self.record.messages:
            self.record.messages.append(message)


def spread(lab: Lab, count: int) -> list[int]:
    """Numbers of operations, spread over the whole run, with the first and the last."""
    last = len(lab.kinds)
    count = min(count, last)
    return sorted({1 + round(place * (last - 1) / max(1, count - 1)) for place in range(count)})


def renames(lab: Lab, most: int) -> list[int]:
    """Numbers of the renames: of all, or of `most` spread over them."""
    found = [number for number, kind in enumerate(lab.kinds, 1) if kind == "r"]
    return found if len(found) <= most else [found[place * len(found) // most] for place in range(most)]


def each_operation(
    lab: Lab, record: Record, numbers: list[int], action: str, error: int, codes: set[int]
) -> None:
    """One trial for each operation that meets the fault."""
    trial = Trial(lab, record)
    for number in numbers:
        lab.clear()
        lab.shim.arm(lab.out, action, number, error)
        ended = lab.run(armed=True)
        lab.shim.disarm()
        trial.judge(f"operation {number} ({lab.kinds[number - 1]})", ended, codes)


def killed(lab: Lab, record: Record) -> None:
    numbers = sorted({*spread(lab, lab.stage.points), *renames(lab, 4 * lab.stage.points)})
    each_operation(lab, record, numbers, "kill", 0, {-signal.SIGKILL})


def interrupted(lab: Lab, record: Record) -> None:
    codes = {130}
    if lab.stage.signal == signal.SIGTERM:
        codes.add(-signal.SIGTERM)  # before the training loop listens to it
    each_operation(lab, record, spread(lab, lab.stage.points), "signal", lab.stage.signal, codes)


def no_space(lab: Lab, record: Record) -> None:
    each_operation(lab, record, spread(lab, lab.stage.points), "error from then on", errno.ENOSPC, {2})


def quota(lab: Lab, record: Record) -> None:
    each_operation(lab, record, spread(lab, lab.stage.points // 2), "error from then on", errno.EDQUOT, {2})


def io_error(lab: Lab, record: Record) -> None:
    numbers = sorted({*spread(lab, lab.stage.points), *renames(lab, 3)})
    each_operation(lab, record, numbers, "error", errno.EIO, {75})


def clock_back(lab: Lab, record: Record) -> None:
    """Dates in what is written follow the clock, so only the names of the files are compared."""
    for number in spread(lab, 4)[1:3] or [1]:
        lab.clear()
        lab.shim.arm(lab.out, "clock", number)
        ended = lab.run(armed=True)
        lab.shim.disarm()
        record.codes[ended.code] = record.codes.get(ended.code, 0) + 1
        if ended.code or lab.content().keys() != lab.undisturbed.keys():
            record.faults.append(f"operation {number}: exit code {ended.code}\n{ended.said[-1500:]}")


def fill(lab: Lab, free: int) -> list[Path]:
    """Leaves so many bytes free in the file system at `out`; returns what to remove."""
    filler, rest = lab.out / ".filler", lab.out / ".rest"

    def there() -> int:
        facts = os.statvfs(lab.out)
        return facts.f_bavail * facts.f_frsize

    margin = 256 << 10  # of the file system itself
    subprocess.run(["fallocate", "-l", str(max(4096, there() - free - margin)), str(filler)], check=True)
    with rest.open("wb", buffering=0) as handle, suppress(OSError):
        while there() > free:
            handle.write(bytes(4096))
            os.fsync(handle.fileno())
    return [filler, rest]


def full_ext4(lab: Lab, record: Record) -> None:
    with lab.ext4():
        trial = Trial(lab, record)
        for level in TEN_LEVELS:
            lab.clear()
            fillers = fill(lab, lab.bytes * level // 10)
            ended = lab.run()
            for filler in fillers:
                filler.unlink()
            trial.judge(f"{10 * level} % of the space", ended, {2})


def full_tmpfs(lab: Lab, record: Record) -> None:
    trial = Trial(lab, record)
    for level in TEN_LEVELS:
        with lab.tmpfs(lab.bytes * level // 10):
            ended = lab.run()
            subprocess.run(["mount", "-o", "remount,size=64M", str(lab.out)], check=True)
            trial.judge(f"{10 * level} % of the space in memory", ended, {2})


def half_way(lab: Lab, record: Record, act: Callable[[], None], codes: set[int]) -> None:
    """The file system goes wrong for real while a command stands before an operation."""
    trial = Trial(lab, record)
    for number in spread(lab, 5)[1:4] or [1]:
        with lab.ext4() as image:
            running = lab.pause(number)
            act()
            lab.shim.disarm()
            ended = running.end()
            lab.unmount()
            subprocess.run(["fsck.ext4", "-fy", str(image)], capture_output=True, check=False)
            lab.mount(image)
            trial.judge(f"before operation {number}", ended, codes, lossy=True)


def read_only_half_way(lab: Lab, record: Record) -> None:
    half_way(lab, record, lab.abort, {2, 75})


def power_cut(lab: Lab, record: Record) -> None:
    half_way(lab, record, lab.shut_down, {75})


def read_only(lab: Lab, record: Record) -> None:
    with lab.ext4():
        subprocess.run(["mount", "-o", "remount,ro", str(lab.out)], check=True)
        ended = lab.run()
        subprocess.run(["mount", "-o", "remount,rw", str(lab.out)], check=True)
        Trial(lab, record).judge("read-only", ended, {2})


def no_permission(lab: Lab, record: Record) -> None:
    lab.clear()
    os.chown(lab.out, 65534, 65534)
    ended = lab.run(override=1)
    os.chown(lab.out, 0, 0)
    Trial(lab, record).judge("another user's folder", ended, {2})


def file_for_folder(lab: Lab, record: Record) -> None:
    trial = Trial(lab, record)
    for depth in (0, 1):
        lab.clear()
        place = lab.out if depth == 0 else lab.stage.folder(lab.out)
        if depth == 0:
            lab.out.rmdir()
        place.write_text("a file\n")
        ended = lab.run()
        if place.read_text() != "a file\n":
            record.faults.append(f"{place}: the user's file is gone")
        place.unlink()
        lab.out.mkdir(exist_ok=True)
        trial.judge(f"a file at {place.name}", ended, {2})


def links_in_a_circle(lab: Lab, record: Record) -> None:
    lab.clear()
    lab.out.rmdir()
    lab.out.symlink_to(lab.out)
    ended = lab.run()
    lab.out.unlink()
    lab.out.mkdir()
    Trial(lab, record).judge("a circle of links", ended, {2})


def limited(lab: Lab, record: Record, name: str, values: tuple[int, ...], codes: set[int]) -> None:
    trial = Trial(lab, record)
    for value in values:
        lab.clear()
        trial.judge(f"{name} limited to {value}", lab.run(**{name: value}), codes)


def open_files(lab: Lab, record: Record) -> None:
    limited(lab, record, "files", (0, 1, 2, 4), {2})


def file_size(lab: Lab, record: Record) -> None:
    lab.run()
    largest = lab.largest
    limited(
        lab,
        record,
        "size",
        tuple(max(4096, size) for size in (largest // 8, largest // 2, largest - 1)),
        {2} if lab.stage.final_names else {2, 75},  # Megatron keeps no reason
    )


_C_ABORT = 127
"""How glibc ends a thread that it has no room for."""


def memory(lab: Lab, record: Record) -> None:
    """Less and less address space, until it is too little: with far less no thread can start, for which libraries
    (pyarrow, rayon) wait forever; torch's do so in training with any shortage."""
    codes = {75, -signal.SIGABRT, _C_ABORT}
    trial = Trial(lab, record)
    for mib in (192, 128, 96, 64, 48) if lab.stage.name != "train" else ():
        lab.clear()
        ended = lab.run(memory=mib << 20)
        trial.judge(f"memory limited to {mib << 20}", ended, codes)
        if ended.code:
            break
    if Path("/sys/fs/cgroup/memory").is_dir():
        limited(lab, record, "group", (4 << 20, 12 << 20, 32 << 20), {*codes, -signal.SIGKILL})


def second_process(lab: Lab, record: Record) -> None:
    """A second process begins when the first stands before an operation; both end, one of them perhaps refused."""
    trial = Trial(lab, record)
    for number in spread(lab, lab.stage.points // 2):
        lab.clear()
        label = f"a second process before operation {number}"
        first = lab.pause(number)
        second = lab.start()
        refused = second.poll(2 * lab.seconds + 0.5)
        lab.shim.disarm()
        one = first.end()
        other = refused or second.end()
        trial.judge(f"{label}: the first", one, {2}, again=False)
        trial.judge(f"{label}: the second", other, {2})
        if one.code and other.code:
            record.faults.append(f"{label}: both were refused\n{one.said[-500:]}\n{other.said[-500:]}")
        names_it = ("is writing it", "wrote it in the meantime", "exists")
        if other.code == 2 and not any(words in other.said for words in names_it):
            record.faults.append(f"{label}: it does not say who is writing\n{other.said[-800:]}")


FAULTS: dict[str, tuple[str, Callable[[Lab, Record], None]]] = {
    "full disk, ext4": (
        "a loop-mounted ext4 with 0, 10, … 90 % of the space that the stage needs",
        full_ext4,
    ),
    "full disk, tmpfs": ("a tmpfs with 0, 10, … 90 % of that space", full_tmpfs),
    "full from one write on": ("ENOSPC from operation N on, after half of its bytes", no_space),
    "quota": ("EDQUOT from operation N on, after half of its bytes", quota),
    "read-only half-way": ("the kernel aborts the ext4 before operation N", read_only_half_way),
    "power cut": (
        "the ext4 is shut down before operation N, without its journal: EIO, and what was not synced is lost",
        power_cut,
    ),
    "input/output error": ("EIO for operation N alone", io_error),
    "SIGKILL": ("all processes, at operation N, after half of its bytes; at the renames too", killed),
    "SIGINT": ("Ctrl-C at operation N (SIGTERM in training)", interrupted),
    "open files": ("RLIMIT_NOFILE at 0 … 4 above what is open", open_files),
    "memory": (
        "RLIMIT_AS at 192, 128, 96, 64 and 48 MiB above what the imports take, until it is too little (not of training); a control group of 4 … 32 MiB, where the kernel kills",
        memory,
    ),
    "file size": ("RLIMIT_FSIZE below the largest file", file_size),
    "clock set back": ("by 400 days at operation N", clock_back),
    "second process": ("the same command again while the first stands before operation N", second_process),
    "read-only mount": ("ext4 mounted read-only", read_only),
    "no permission": ("another user's folder, without the right to override", no_permission),
    "file for a folder": ("at the output's folder, and at the one above", file_for_folder),
    "links in a circle": ("at the output's folder", links_in_a_circle),
}


def try_fault(lab: Lab, name: str) -> Record:
    """All trials of a fault; the folder is empty afterwards."""
    record = Record()
    try:
        FAULTS[name][1](lab, record)
    finally:
        lab.clear()
    return record
