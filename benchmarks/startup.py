"""How long the command line takes to answer: whole processes, from the shell's point of view.

    python -m benchmarks.startup [--rounds 15]

Times `emma --help`, `emma plan` of a large run, and an empty Python process as the floor. The commands take turns, so
that a busy moment of the machine hits all of them; the first round fills caches and does not count. Wall time on a busy
machine measures the machine: CPU time is given beside it. Exit code 1 if a median of wall time is above its target. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

__all__ = ["Times", "times_by_command"]

RUN = "emma_llama3_8b_bi"
TARGETS = {"help": 0.4, "plan": 1.2}
"""Seconds on an idle machine, at most."""


def commands() -> dict[str, list[str]]:
    """What is timed: the console script beside this interpreter, as a user calls it, and Python by itself."""
    emma = str(Path(sys.executable).with_name("emma"))
    return {
        "python": [sys.executable, "-c", "pass"],
        "help": [emma, "--help"],
        "plan": [emma, "plan", RUN],
    }


@dataclass
class Times:
    """Seconds of a command, one value per round: `wall` from start to end, `cpu` of its process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def times_by_command(rounds: int) -> dict[str, Times]:
    """Times of each command, run in turn.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    found = {name: Times() for name in commands()}
    for number in range(rounds + 1):
        for name, command in commands().items():
            start, cpu = time.perf_counter(), _cpu_of_children()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if number:
                found[name].wall.append(time.perf_counter() - start)
                found[name].cpu.append(_cpu_of_children() - cpu)
    return found


def main(rounds: int) -> int:
    """Prints a table and the JSON line; 1 if a target is missed."""
    found = times_by_command(rounds)
    wall = {name: statistics.median(times.wall) for name, times in found.items()}
    cpu = {name: statistics.median(times.cpu) for name, times in found.items()}
    print(f"| {rounds} rounds, load {os.getloadavg()[0]:.1f} | median | fastest | median CPU time | target |")
    print("|---|---:|---:|---:|---:|")
    for name, command in commands().items():
        label = " ".join([Path(command[0]).name, *command[1:]])
        target = f"{TARGETS[name]} s" if name in TARGETS else ""
        fastest = min(found[name].wall)
        print(f"| `{label}` | {wall[name]:.3f} s | {fastest:.3f} s | {cpu[name]:.3f} s | {target} |")
    met = all(wall[name] <= target for name, target in TARGETS.items())
    seconds = {f"{name}_seconds": round(median, 4) for name, median in wall.items()}
    seconds |= {f"{name}_cpu_seconds": round(median, 4) for name, median in cpu.items()}
    print(orjson.dumps({**seconds, "targets": TARGETS, "met": met}).decode())
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="times that each command is run")
    sys.exit(main(parser.parse_args().rounds))
