"""What happened to a run under Slurm: `RUN/slurm/history.jsonl`, one event per line, append-only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from emma.base.files import append_line
from emma.base.manifest import now
from emma.slurm.verdict import from_outside
from emma.tools.runs.metrics import read_lines

__all__ = ["FOLDER", "History"]

FOLDER = "slurm"
"""Folder of a run that holds its job scripts and their history."""


@dataclass(frozen=True)
class History:
    """Events of a run: `submitted` (stage, job, after), and training's `began`, `ended` and, where nobody was left to
    say how, `lost` (job, launch, step, ...)."""

    run: Path

    @property
    def file(self) -> Path:
        return self.run / FOLDER / "history.jsonl"

    def add(self, event: str, **facts: Any) -> None:
        """Appends an event with its time."""
        append_line(self.file, orjson.dumps({"event": event, "time": now(), **facts}))

    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first.

        Raises:
            UserError: a complete line is not a JSON object.
        """
        return read_lines(self.file)

    def attempts_without_progress(self, step: int, *, stalled: bool = False) -> int:
        """Number of consecutive training jobs, counted back from the latest, that began at `step`. If the run is
        still at `step`, none of them made progress. A launch that went back to an earlier checkpoint does not
        count, nor does what was before it, nor one that was ended from outside: preempted, requeued, cancelled, its
        node lost. Those that stalled are counted apart (`stalled`)."""
        count, excused, hung = 0, set[int](), set[int]()
        for event in self._since_submission():
            if event["event"] == "stalled":
                hung.add(event["launch"])
            if event["event"] == "ended" and (event.get("rewinds") or event.get("outside")):
                excused.add(event["launch"])
            if event["event"] == "lost" and from_outside(event["how"]):
                excused.add(event["launch"])
            if event["event"] == "began" and event["launch"] not in excused:
                if event["step"] != step:
                    break
                count += (event["launch"] in hung) == stalled
        return count

    def has_stalled(self, launch: int) -> bool:
        """Whether a launch was ended because it made no progress."""
        return any(event["event"] == "stalled" and event["launch"] == launch for event in self.events())

    def stalls(self, job: str | None, restart: int) -> int:
        """How many launches of one start of a job stalled."""
        ended = [event for event in self.events() if event["event"] == "ended" and event.get("stalled")]
        return sum(event["job"] == job and event["restart"] == restart for event in ended)

    def given_up(self) -> bool:
        """Whether a trial on this machine ended with an error since it was last begun."""
        return next(
            (
                e["event"] == "given up"
                for e in self._since_submission()
                if e["event"] in ("began", "given up")
            ),
            False,
        )

    def nodes_that_failed(self) -> set[str]:
        """Nodes that failed a preflight since the run was submitted."""
        failed = (event for event in self._since_submission() if event["event"] == "preflight failed")
        return {node for event in failed for node in event["nodes"]}

    def _since_submission(self) -> Iterator[dict[str, Any]]:
        """Events since training was last submitted, latest first; a new submission resets the counts."""
        for event in reversed(self.events()):
            if event["event"] == "submitted" and event["stage"] == "train":
                return
            yield event

    def submitted(self) -> list[dict[str, Any]]:
        """Submission events."""
        return [event for event in self.events() if event["event"] == "submitted"]
