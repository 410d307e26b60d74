"""Who has submitted which stage: a note with the folder that the stage writes, for everybody who shares it.

Slurm's singleton knows one user's jobs, and where jobs are private (`PrivateData=jobs`) `squeue` shows no others. So a
submission notes its jobs in each stage's folder, `.STAGE.submitted.json` (a mix is renamed into place, so its note is
beside it), and holds the note's lock from the look at these notes until its own are written: of two people who submit at the same moment, one waits.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from emma.base.errors import UserError
from emma.base.file_systems import local_locks
from emma.base.files import read_json, write_json
from emma.base.manifest import now
from emma.base.writers import sole_writer, user_name
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.slurm import query
from emma.slurm.stages import STAGES, Stage, place

__all__ = ["Note", "SubmittedMeanwhileError", "forget", "note", "of_others", "replaced", "sole_submitter"]


class SubmittedMeanwhileError(UserError):
    """Somebody has submitted a stage since the chain was planned; planning again finds their jobs."""


@dataclass(frozen=True)
class Note:
    """A stage's submission.

    Attributes:
        job: the last of its jobs, which others wait for.
        user, host, since: who submitted it, where, and when.
        run: run folder of the submission.
        content: what it covers, where runs that share the folder need different parts of it.
    """

    job: int
    user: str
    host: str
    since: str
    run: str
    content: list[str]

    def __str__(self) -> str:
        return f"job {self.job} of {self.user}, submitted on {self.host} at {self.since}"


def _file(recipe: Recipe, stage: Stage) -> Path:
    folder = place(recipe, stage.name)
    if stage.name == "mix":
        return folder.parent / f".{folder.name}.{stage.name}.submitted.json"
    return folder / f".{stage.name}.submitted.json"


def of_others(recipe: Recipe, stage: Stage, *, ask: bool = True) -> Note | None:
    """The job of another user that is to do this stage; None if there is none, or if it has ended.

    This user's own jobs are in the queue for them to see.

    Args:
        recipe: the run.
        stage: the stage.
        ask: where jobs are private, ask the scheduler through a job on hold; otherwise the note is taken at its word.
    """
    found = _read(recipe, stage)
    if found is None or found.user == user_name():
        return None
    return found if _waits_or_runs(recipe, found, ask) else None


def _read(recipe: Recipe, stage: Stage) -> Note | None:
    """The note of a stage, if its job does what the recipe needs."""
    file = _file(recipe, stage)
    if not file.is_file():
        return None
    found = Note(**read_json(file))
    return found if set(stage.content(recipe)) <= set(found.content) else None


def _waits_or_runs(recipe: Recipe, found: Note, ask: bool = True) -> bool:
    slurm = recipe.cluster.slurm
    given = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return query.exists(found.job, options if ask else None)


def note(recipe: Recipe, stage: Stage, job: int) -> None:
    """Notes a stage's last job."""
    run = str(recipe.run_folder.absolute())
    written = Note(job, user_name(), socket.gethostname(), now(), run, stage.content(recipe))
    write_json(_file(recipe, stage), asdict(written))


def replaced(run: Path, job: int, by: int) -> None:
    """Notes the job that takes the place of a run's training job, where that one is what was noted."""
    recipe, stage = load_recipe(run), STAGES["train"]
    with sole_writer(_file(recipe, stage), wait=True):
        found = _read(recipe, stage)
        if found is not None and found.job == job:
            note(recipe, stage, by)


def forget(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Removes this user's notes about stages."""
    for stage in stages:
        file = _file(recipe, stage)
        if file.is_file() and read_json(file)["user"] == user_name():
            file.unlink(missing_ok=True)


@contextmanager
def sole_submitter(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[None]:
    """Holds the submission locks of all stages, so that nobody else submits them within the block.

    Raises:
        SubmittedMeanwhileError: one of them was submitted since it was planned, by anybody.
    """
    with ExitStack() as locks:
        # All in one order, so that two submissions never wait for each other in a circle.
        paths = sorted({_file(recipe, stage) for stage in stages})
        for folder in sorted({path.parent for path in paths}):
            if (fault := local_locks(folder)) is not None:
                print(f"warning: {folder}: {fault}", file=sys.stderr)
        for path in paths:
            locks.enter_context(sole_writer(path, wait=True))
        for stage in stages:
            # Of jobs that were there before, the plan knew.
            found = _read(recipe, stage)
            if found is not None and _waits_or_runs(recipe, found):
                raise SubmittedMeanwhileError(
                    f"{stage.name}: {found}, is doing it. Fix: submit again, which waits for that job"
                )
        yield
