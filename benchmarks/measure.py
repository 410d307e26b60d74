"""Wall time and peak memory of a command with all its processes, and the overhead of one command over another."""

from __future__ import annotations

import random
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Measured", "family", "measure", "overhead", "proportional_memory", "seconds_of"]


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
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, env=None if environment is None else dict(environment)) as process:
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
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(seconds, peak / 2**30, processor)


def seconds_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Wall time of a command that nothing watches: watching memory takes a twentieth of two cores, and more if the
    processes share much memory.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run(command, env=None if environment is None else dict(environment), check=True)
    return time.perf_counter() - start


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
