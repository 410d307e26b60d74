"""What of a run's evaluation travels with the release of a step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

__all__ = ["copy_evaluation", "step_files"]

TABLES = ("results.csv", "gains.json")


def step_files(evaluation: Path, step: int) -> list[Path]:
    """Sample-level outputs of a step: files below an evaluation folder that are named after it, or lie in a folder that is.

    A name is one of the step if it ends in `step-N` before its endings: `samples/demo_step-150/`,
    `heldout/demo_step-150.jsonl`, and the folders that lm-eval names after the path of a model,
    `runs__demo__hf__step-150/`.
    """
    named = re.compile(rf"(?:.*[^0-9A-Za-z])?step-{step}(?:\..*)?")
    return sorted(
        path
        for path in evaluation.rglob("*")
        if path.is_file() and any(named.fullmatch(part) for part in path.relative_to(evaluation).parts)
    )


def copy_evaluation(evaluation: Path, destination: Path, step: int, *, tables: bool) -> list[Path]:
    """Copies the tables and the sample-level outputs of a step into a folder; makes none where there is nothing.

    Args:
        evaluation: the run's evaluation folder; it need not exist.
        destination: folder to fill.
        step: the step.
        tables: whether the tables are about this step.

    Returns:
        The files that were copied, in the evaluation folder.
    """
    found = [evaluation / name for name in TABLES if tables and (evaluation / name).is_file()]
    found += step_files(evaluation, step)
    for path in found:
        target = destination / path.relative_to(evaluation)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return found
