"""What Megatron logged about a run's steps. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.tools.runs.checkpoints import COMPLETE_MARK
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Logged", "mixes_of", "read_logged"]


@dataclass(frozen=True)
class Logged:
    """The rows of `metrics.jsonl` that describe the weights' way, by step, and where each row's mean begins.

    Attributes:
        rows: loss, grad_norm, learning_rate, consumed_samples, ...
        before: for each of these steps, the step after which its row's mean loss begins.
    """

    rows: Mapping[int, Mapping[str, Any]]
    before: Mapping[int, int]

    @property
    def last(self) -> int:
        """The last logged step; 0 if there is none."""
        return max(self.rows, default=0)


def read_logged(run: RunFolder) -> Logged:
    """Reads the rows in the order in which they were written.

    A row takes back those of later steps: a launch that was killed had written them after its last
    checkpoint, and training went on from there.

    Raises:
        UserError: a line is not what the trainer writes.
    """
    rows: dict[int, Mapping[str, Any]] = {}  # ascending
    content = run.metrics_file.read_bytes() if run.metrics_file.is_file() else b""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # still being written
        try:
            row = orjson.loads(line)
            step = int(row["step"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{run.metrics_file}:{number}: not a row of metrics. Fix: remove the line"
            ) from None
        if "loss" not in row:
            continue
        while rows and next(reversed(rows)) >= step:
            rows.popitem()
        rows[step] = row
    starts = [_first(launch["load"]) for launch in run.read_environment().get("launches", [])]
    before, previous = {}, 0
    for step in rows:
        # The last launch that began below a step is the one that wrote its row.
        begun = [start for start in starts if start < step][-1:]
        before[step] = max([previous, *begun])
        previous = step
    return Logged(rows, before)


def _first(load: Mapping[str, Any]) -> int:
    return int(load["step"] or 0) if load["mode"] == "resume" else 0


def mixes_of(run: RunFolder) -> set[str]:
    """Fingerprints of the mixes that the run's checkpoints were trained on."""
    marks = (read_json(path) for path in sorted(run.checkpoints.glob(f"iter_*/{COMPLETE_MARK}")))
    return {str(mark["mix"]) for mark in marks if mark.get("mix")}
