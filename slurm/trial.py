"""The job's side of a sweep.

    python -P -m emma.slurm.trial begin SWEEP_FOLDER NUMBER     # prints the trial's run folder
    python -P -m emma.slurm.trial mix SWEEP_FOLDER NUMBER       # prints its mix folder
    python -P -m emma.slurm.trial watch SWEEP_FOLDER NUMBER     # stops the trial if the sweep prunes it
    python -P -m emma.slurm.trial evaluate SWEEP_FOLDER NUMBER  # exports and evaluates what has been trained

The jobs of `templates/trial.sh.j2` call these.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from emma.base.errors import UserError
from emma.base.system_errors import report
from emma.recipes.load import load_recipe
from emma.slurm.stages import STAGES, emma_program, stage_job
from emma.slurm.sweep import SweepFolder
from emma.tools.runs.run_folder import RunFolder

__all__ = ["begin", "main", "mix_folder", "watch"]

WATCH_SECONDS = 10.0


def begin(path: Path, number: int) -> Path:
    """Run folder of a trial; a trial that has already begun keeps its parameters."""
    folder = SweepFolder.read(path)
    trial = folder.trial(number)
    if (trial.folder / "trial.json").is_file():
        return trial.folder
    if trial.parameters is not None:
        return folder.begin(number, trial.parameters)
    from emma.slurm.adaptive import ask

    parameters, asked = ask(folder, number)
    return folder.begin(number, parameters, asked=asked)


def mix_folder(path: Path, number: int) -> Path:
    """Folder of a trial's mix."""
    return load_recipe(SweepFolder.read(path).folder(number)).mix_folder.absolute()


def watch(path: Path, number: int, seconds: float = WATCH_SECONDS) -> None:
    """Reports a trial's validations until it ends, and asks it to stop if the sweep prunes it."""
    from emma.slurm.adaptive import prune

    folder = SweepFolder.read(path)
    while folder.trial(number).state == "begun":
        if prune(folder, folder.trial(number)):
            RunFolder(folder.folder(number)).stop_request.touch()
            print(f"trial {number}: pruned", file=sys.stderr, flush=True)
            return
        time.sleep(seconds)


def evaluate(path: Path, number: int) -> None:
    """Exports and evaluates a trial that has been trained to its end, if the sweep asks for scores; what is done stays.

    Raises:
        UserError: a command failed.
    """
    folder = SweepFolder.read(path)
    run = folder.folder(number)
    recipe = load_recipe(run)
    if not folder.sweep.evaluates or not RunFolder(run).finished(recipe):
        return
    for stage in (STAGES["convert"], STAGES["evaluate"]):
        if stage.done(recipe):
            continue
        for words in stage.commands(recipe, stage_job(recipe, stage.name).model_copy(update={"tasks": 1})):
            command = [emma_program(), *words]
            if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
                raise UserError(f"{run}: `emma {' '.join(words)}` failed. Fix: read the lines above")


def main(arguments: list[str]) -> int:
    """Entry point."""
    actions: dict[str, Callable[[Path, int], Path | None]] = {
        "begin": begin,
        "mix": mix_folder,
        "watch": watch,
        "evaluate": evaluate,
    }
    if len(arguments) != 3 or arguments[0] not in actions or not arguments[2].isdigit():
        print(
            "usage: python -P -m emma.slurm.trial begin|mix|watch|evaluate SWEEP_FOLDER NUMBER",
            file=sys.stderr,
        )
        return 2
    try:
        answer = actions[arguments[0]](Path(arguments[1]), int(arguments[2]))
    except Exception as error:
        if (code := report(error)) is None:
            raise
        return code
    if answer is not None:
        print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
