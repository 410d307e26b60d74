"""Time spent training since the last logged step, without validation and saves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """A stopwatch: `Metrics` reads and restarts it, and what interrupts training pauses it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts again from 0."""
        self._begun, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the start, less the pauses."""
        return time.perf_counter() - self._begun - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside the block."""
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun
