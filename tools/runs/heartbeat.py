"""Whether a launch still makes progress: what rank 0 is doing, since when, and how long it may take. Needs no torch.

`heartbeat.json` among the launch's logs. A thread writes it; what it says is set by the code that makes progress, so a
hang anywhere, in any rank that rank 0 waits for, shows as a phase that does not end.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from emma.base.claims import temporary_name
from emma.base.files import read_json

__all__ = ["FACTOR", "Beat", "Heartbeat", "deadline"]

FACTOR = 10.0
"""A phase may take this many times as long as it is known to take."""

_KEPT = 50


@dataclass(frozen=True)
class Beat:
    """What `heartbeat.json` says.

    Attributes:
        phase: `start-up` (until the first step has begun), `step`, `save`, `validation` or `end`.
        step: the last finished one.
        since: when the phase, or within `step` the current step, began; seconds since 1970, on rank 0's clock.
        time: when it was written.
        seconds: how long each phase has usually taken so far: the median of steps, the longest of others.
    """

    phase: str
    step: int
    since: float
    time: float
    seconds: Mapping[str, float]

    @staticmethod
    def read(logs: Path) -> Beat | None:
        """The last beat of a launch; None before the first."""
        file = logs / "heartbeat.json"
        return Beat(**read_json(file)) if file.is_file() else None


class Heartbeat:
    """Notes what this rank does; one rank writes it down."""

    def __init__(self, logs: Path, *, writes: bool) -> None:
        self.file, self.writes = logs / "heartbeat.json", writes
        self.phase, self.step, self.since = "start-up", 0, time.time()
        self._taken: dict[str, deque[float]] = {}

    def enter(self, phase: str, step: int | None = None) -> None:
        """Says what begins; how long the phase before took is remembered."""
        now = time.time()
        self._taken.setdefault(self.phase, deque(maxlen=_KEPT)).append(now - self.since)
        self.phase, self.since = phase, now
        self.step = self.step if step is None else step

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase between two steps. What came before it since the last step is no measure of steps."""
        self.since, self.phase = time.time(), phase
        try:
            yield
        finally:
            self.enter("step")

    def write(self) -> None:
        """Writes the file whole; without fsync, as a crash of the machine needs no last beat."""
        if not self.writes:
            return
        usual = {
            phase: statistics.median(taken) if phase == "step" else max(taken)
            for phase, taken in self._taken.items()
        }
        beat = {
            "phase": self.phase,
            "step": self.step,
            "since": self.since,
            "time": time.time(),
            "seconds": usual,
        }
        temporary = self.file.with_name(temporary_name(self.file.name, "new"))
        temporary.write_bytes(orjson.dumps(beat))
        os.replace(temporary, self.file)  # noqa: PTH105  one call


def deadline(beat: Beat | None, least: float, startup: float, planned: Mapping[str, float]) -> float:
    """How many seconds a launch may spend in its phase before it counts as stalled.

    Args:
        beat: its last beat; None where no rank has started.
        least: for any phase.
        startup: for starting, for the first step, and for ending.
        planned: seconds that a phase should take, for phases that have not been measured yet.
    """
    if beat is None or beat.phase in ("start-up", "end"):
        return startup
    if beat.phase in beat.seconds:
        return max(least, FACTOR * beat.seconds[beat.phase])
    return max(least, startup, FACTOR * planned.get(beat.phase, 0.0))
