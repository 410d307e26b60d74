"""Wall time and peak memory of a command with all its processes, and the overhead of one command over another."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Measured", "family", "measure", "overhead", "proportional_memory", "timed"]

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass(frozen=True)
class Measured:
    """`seconds` of wall time, `peak_gib`, the largest sum of the processes' proportional memory, in which shared
    pages count once, and `processor_seconds` of all of them."""

    seconds: float
    peak_gib: float
    processor_seconds: float


def family(process: int) -> list[int]:
    """A process and all its descendants."""
    found = [process]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def proportional_memory(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        return 0
    return 0


def measure(
    command: Sequence[str], environment: Mapping[str, str] | None = None, every: float = 0.2
) -> Measured:
    """Runs a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with (
        _processor_time() as spent,
        subprocess.Popen(command, env=None if environment is None else dict(environment)) as process,
    ):
        start = time.perf_counter()
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(every):
                peak = max(peak, sum(proportional_memory(member) for member in family(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Measured(seconds, peak / 2**30, spent[0])


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Wall and processor seconds of a command that nothing watches: watching memory takes a twentieth of two cores, and
    more if the processes share much memory.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with _processor_time() as spent:
        start = time.perf_counter()
        subprocess.run(command, env=None if environment is None else dict(environment), check=True)
        seconds = time.perf_counter() - start
    return seconds, spent[0]


@contextmanager
def _processor_time() -> Iterator[list[float]]:
    """Processor seconds of all processes that are started within the block, known after it.

    The system counts a process only when its parent has waited for it, which nobody does for a server of processes that
    outlives the command: this process adopts and awaits them.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent: list[float] = []
    yield spent
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def overhead(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How much more time ours takes than the peer, from pairs measured in turn.

    Args:
        pairs: seconds of ours and of the peer.

    Returns:
        `overhead_percent`, the median over pairs, and `low` and `high`, its 95 % interval (bootstrap over pairs).
    """
    ratios = [own / peer for own, peer in pairs]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(10_000))
    found = {"overhead_percent": statistics.median(ratios), "low": medians[250], "high": medians[9750]}
    return {name: (ratio - 1) * 100 for name, ratio in found.items()}
