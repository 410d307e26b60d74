"""Where a run's time went, and how its launches ended: from its claims, heartbeats and metrics. Needs no torch."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from emma.recipes.schema import Recipe
from emma.tools.runs.claim import Claim
from emma.tools.runs.heartbeat import Beat
from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Goodput", "LaunchEnd", "goodput", "launch_ends"]


@dataclass(frozen=True)
class Goodput:
    """Device-hours of a run's launches, from taking the run to the end of their ranks. Waiting in the queue is not in
    it.

    Attributes:
        allocated: all of them.
        productive: steps that the weights went through.
        repeated: steps that were trained again, because a launch ended after its last checkpoint.
        start_up: until the first step was done, of launches that say so.
        other: saves, validation, hangs, and start-up of launches that never got to a step.
    """

    allocated: float
    productive: float
    repeated: float
    start_up: float
    other: float

    @property
    def share(self) -> float:
        """Productive share, 0 to 1."""
        return self.productive / self.allocated if self.allocated else 0.0

    def to_dict(self) -> dict[str, float]:
        """JSON."""
        return {**asdict(self), "share": self.share}

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of {self.allocated:,.1f} device-hours productive; start-up {self.start_up:,.1f}, "
            f"repeated steps {self.repeated:,.1f}, saves, validation and the rest {self.other:,.1f}"
        )


@dataclass(frozen=True)
class LaunchEnd:
    """A launch, and how it ended: in words, None while it runs or nobody has said so."""

    number: int
    job: str | None
    started: str
    how: str | None
    step: int | None

    def __str__(self) -> str:
        job = f"job {self.job}" if self.job else f"launch {self.number}"
        at = "" if self.step is None else f" after step {self.step}"
        return f"{job}: {self.how or 'running'}{at}"


def launch_ends(run: RunFolder) -> list[LaunchEnd]:
    """All launches of a run, oldest first."""
    found = []
    for number in sorted(run.claims.numbers()):
        claim, end, beat = run.claims.read(number), run.claims.end_of(number), _beat(run, number)
        step = beat.step if beat and beat.step else None
        found.append(LaunchEnd(number, claim.job, claim.started, end["how"] if end else None, step))
    return found


def goodput(recipe: Recipe, run: RunFolder, now: float | None = None) -> Goodput | None:
    """Where the time of a run's launches went; None where none has begun."""
    claims = [run.claims.read(number) for number in run.claims.numbers()]
    if not claims:
        return None
    devices, hour = recipe.cluster.world_size, 3600.0
    spans = [_seconds(run, claim, time.time() if now is None else now) for claim in claims]
    rows = [row for row in read_lines(run.metrics_file) if "loss" in row and row["tokens_per_second_per_gpu"]]
    kept = {row["step"]: row for row in rows}
    productive = sum(_seconds_of(recipe, row) for row in kept.values())
    repeated = sum(_seconds_of(recipe, row) for row in rows) - productive
    beats = (_beat(run, claim.number) for claim in claims)
    start_up = sum(beat.seconds.get("start-up", 0.0) for beat in beats if beat)
    # Start-up ends with the first step, which counts as a step.
    firsts = sum(_seconds_of(recipe, kept[step]) for step in _first_steps(rows) if step in kept)
    start_up = max(0.0, start_up - firsts)
    other = max(0.0, sum(spans) - productive - repeated - start_up)
    parts = (sum(spans), productive, repeated, start_up, other)
    return Goodput(*(seconds * devices / hour for seconds in parts))


def _first_steps(rows: list[dict[str, Any]]) -> list[int]:
    """First logged steps of launches: where the numbers begin, or go back."""
    before, found = None, []
    for row in rows:
        if before is None or row["step"] <= before:
            found.append(row["step"])
        before = row["step"]
    return found


def _seconds_of(recipe: Recipe, row: dict[str, Any]) -> float:
    """Seconds of the steps of a row."""
    steps = min(recipe.logging.interval, row["step"])
    return steps * recipe.tokens_per_step / (row["tokens_per_second_per_gpu"] * recipe.cluster.world_size)


def _seconds(run: RunFolder, claim: Claim, now: float) -> float:
    """How long a launch held its devices."""
    begun, end, beat = _time(claim.started), run.claims.end_of(claim.number), _beat(run, claim.number)
    over = now if end is None else _time(end["time"])
    # Where nobody was left to say that it had ended, the next launch did, perhaps hours later.
    return max(0.0, (min(over, beat.time + 60) if beat is not None else over) - begun)


def _beat(run: RunFolder, number: int) -> Beat | None:
    return Beat.read(Path(run.logs) / f"launch-{number:04d}")


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
