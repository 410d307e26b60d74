"""The parts of a run's evaluation that are released with a step."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.tools.evaluation.stored import journal_of

__all__ = ["copy_evaluation", "step_files"]

TABLES = ("results.csv", "gains.json")


def step_files(evaluation: Path, step: int) -> list[Path]:
    """Sample-level outputs of a step: files in an evaluation folder that are named after the step, or are in
    a folder that is.

    A name belongs to the step if it ends in `step-N`, ignoring file extensions: `samples/demo_step-150/`,
    `heldout/demo_step-150.jsonl`, and the folders that lm-eval names after a model's path,
    `runs__demo__hf__step-150/`.
    """
    named = re.compile(rf"(?:.*[^0-9A-Za-z])?step-{step}(?:\..*)?")
    return sorted(
        path
        for path in evaluation.rglob("*")
        if path.is_file() and any(named.fullmatch(part) for part in path.relative_to(evaluation).parts)
    )


def copy_evaluation(
    evaluation: Path, destination: Path, step: int, *, gains: Mapping[str, Any] | None
) -> list[Path]:
    """Copies a step's tables and sample-level outputs into a folder, which is not created if there are none.

    Args:
        evaluation: the run's evaluation folder; it may be missing.
        destination: folder to fill.
        step: the step.
        gains: content of gains.json if the tables are about this step; then the base's scores of single documents
            come along, from which the gains can be computed again.

    Returns:
        The files that were copied, in the evaluation folder.
    """
    found = []
    if gains is not None:
        tables = [*(evaluation / name for name in TABLES), journal_of(evaluation, gains["base"]).path]
        found = [path for path in tables if path.is_file()]
    found += [path for path in step_files(evaluation, step) if path not in found]
    for path in found:
        target = destination / path.relative_to(evaluation)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return found
