"""`emma slurm stop`: ends a run's training with a checkpoint, asked for by a file, and cancels what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.slurm import query
from emma.slurm.stages import job_name, place
from emma.slurm.watch import silence
from emma.tools.runs.decision import latest_phase
from emma.tools.runs.run_folder import RunFolder

__all__ = ["declare_gone", "patience", "stop"]

POLL_SECONDS = 2.0


def patience(folder: Path) -> float:
    """Seconds that the ranks may need for a step and a checkpoint: the time after which they would count as stalled."""
    folder = latest_phase(folder)
    recipe, run = load_recipe(folder), RunFolder(folder)
    if run.claims.writer() is None:
        return 0.0
    found = silence(recipe, run.read_launch())
    return max(found.limit - found.seconds, float(recipe.cluster.slurm.stall_seconds))


def stop(folder: Path, seconds: float, say: Callable[[str], None]) -> int:
    """Asks the ranks to save after their step and to end, waits for them, and cancels the run's training jobs.

    The request, `RUN/stop`, stays: nothing continues the run until somebody removes it.

    Args:
        folder: run folder.
        seconds: to wait for the checkpoint; then running jobs are cancelled too.
        say: told what happens.

    Returns:
        The step of the latest complete checkpoint.

    Raises:
        SlurmError: the jobs cannot be listed or cancelled.
    """
    # The jobs are those of the run; its guard may have begun a phase, in which they train.
    recipe, run = load_recipe(folder), RunFolder(latest_phase(folder))
    run.stop_request.touch()
    say(
        f"{run.stop_request}: the ranks save after this step and end; remove the file to let the run continue"
    )
    jobs = query.jobs([job_name(place(recipe, "train"), "train")])
    waiting = sorted({job.array for job in jobs if job.state == "PENDING"})
    if waiting:
        # Before the running one ends, so that none of them starts in vain.
        query.run_slurm(["scancel", "--state=PENDING", *map(str, waiting)])
        say(f"cancelled what was waiting: {', '.join(map(str, waiting))}")
    begun = time.monotonic()
    while (writer := run.claims.writer()) is not None and time.monotonic() - begun < seconds:
        time.sleep(POLL_SECONDS)
    if writer is not None:
        say(f"{writer} has not ended within {seconds:.0f} s")
    running = sorted({job.id for job in jobs if job.state != "PENDING"})
    if running and writer is not None:
        query.run_slurm(["scancel", *map(str, running)])
        say(f"cancelled: {', '.join(map(str, running))}")
    return run.latest_step()


def declare_gone(folder: Path) -> str:
    """Records, on a person's word, that the writer of a run is gone.

    Returns:
        The writer, in words.

    Raises:
        UserError: nobody writes the run.
    """
    claims = RunFolder(latest_phase(folder)).claims
    writer = claims.writer()
    if writer is None:
        raise UserError(f"{folder}: nobody writes this run; there is nothing to declare")
    claims.record_end(writer.number, "declared gone by hand")
    return str(writer)
