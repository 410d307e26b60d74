"""Watches the ranks of a launch from the job's first node: says when they have stalled, and what they saved.

The job's script runs it beside the ranks, and ends them when it says so (`templates/ranks.sh.j2`).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.slurm.history import History
from emma.slurm.notify import notify
from emma.tools.arithmetic.cost import checkpoint_bytes
from emma.tools.runs.heartbeat import Beat, deadline
from emma.tools.runs.run_folder import Launch, RunFolder

__all__ = ["Silence", "silence", "watch"]

POLL_SECONDS = 5.0

WRITING = 0.5e9
"""Bytes per second that a first save is expected to reach; a low choice, no measurement. Later saves are measured."""


@dataclass(frozen=True)
class Silence:
    """How long a launch has been in its phase.

    Attributes:
        phase: see `Beat`; `no ranks` where none has started.
        step: the last finished one.
        seconds: since the phase, or the step, began.
        limit: after so many the launch counts as stalled.
    """

    phase: str
    step: int
    seconds: float
    limit: float

    @property
    def stalled(self) -> bool:
        """Whether it has lasted too long."""
        return self.seconds > self.limit

    def __str__(self) -> str:
        where = "no rank has started" if self.phase == "no ranks" else f"{self.phase} after step {self.step}"
        return f"{where} for {self.seconds:,.0f} s (at most {self.limit:,.0f} s)"


def silence(recipe: Recipe, launch: Launch, now: float | None = None) -> Silence:
    """How long a running launch has made no progress."""
    beat, now = Beat.read(Path(launch.logs)), time.time() if now is None else now
    slurm = recipe.cluster.slurm
    planned = {"save": checkpoint_bytes(recipe) / WRITING}
    limit = deadline(beat, slurm.stall_seconds, slurm.startup_seconds, planned)
    since = launch.launch_file.stat().st_mtime if beat is None else beat.since
    return Silence(beat.phase if beat else "no ranks", beat.step if beat else 0, now - since, limit)


def watch(folder: Path, seconds: float = POLL_SECONDS) -> bool:
    """Watches this process's launch until it ends or stalls.

    Returns:
        Whether it has stalled; recorded in the history.
    """
    recipe, run = load_recipe(folder), RunFolder(folder)
    launch = run.own_launch()
    fence, saved = run.fence(launch), run.latest_step()
    while fence.held():
        found = silence(recipe, launch)
        if found.stalled:
            History(folder).add(
                "stalled",
                launch=launch.number,
                phase=found.phase,
                step=found.step,
                seconds=round(found.seconds),
            )
            print(
                f"stalled: {found}; the stacks of the ranks are in {launch.logs}", file=sys.stderr, flush=True
            )
            notify(recipe, "stalled", str(found))
            return True
        if (latest := run.latest_step()) > saved:
            saved = latest
            notify(recipe, "saved", f"checkpoint of step {saved} of {recipe.schedule.steps}")
        time.sleep(seconds)
    return False
