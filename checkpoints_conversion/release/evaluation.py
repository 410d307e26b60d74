"""The parts of a run's evaluation that are released with a step."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from emma.base.files import atomic_write
from emma.tools.evaluation.results import BENCHMARK
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
            come along, from which the gains can be computed again. Of scores and tables what the gains are about is
            copied: scores of more languages could not be told from a language that was left out.

    Returns:
        The files that were copied, in the evaluation folder.
    """
    found = []
    journals: set[Path] = set()
    if gains is not None:
        journals = {journal_of(evaluation, gains[name]).path for name in ("base", "trained")}
        tables = [*(evaluation / name for name in TABLES), journal_of(evaluation, gains["base"]).path]
        found = [path for path in tables if path.is_file()]
    found += [path for path in step_files(evaluation, step) if path not in found]
    for path in found:
        target = destination / path.relative_to(evaluation)
        target.parent.mkdir(parents=True, exist_ok=True)
        if gains is not None and path in journals:
            _copy_journal(path, target, gains)
        elif gains is not None and path == evaluation / "results.csv":
            _copy_table(path, target, gains)
        else:
            shutil.copyfile(path, target)
    return found


def _copy_journal(path: Path, target: Path, gains: Mapping[str, Any]) -> None:
    """The lines from which the gains were computed: of several about a language, the last counts."""
    listed = {(row["kind"], row["language"]) for row in gains["languages"]}
    last: dict[tuple[str, str], bytes] = {}
    for line in path.read_bytes().splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # cut short by a crash
        if row["signature"] == gains["signature"] and (row["kind"], row["language"]) in listed:
            last[row["kind"], row["language"]] = line
    with atomic_write(target) as handle:
        handle.writelines(line + b"\n" for line in last.values())


def _copy_table(path: Path, target: Path, gains: Mapping[str, Any]) -> None:
    """The rows of both models; of held-out text, those of the languages that the gains list."""
    listed = {(f"{BENCHMARK}/{row['kind']}", row["language"]) for row in gains["languages"]}
    with path.open(encoding="utf-8", newline="") as source, atomic_write(target, "w", newline="") as handle:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(handle, reader.fieldnames or [])
        writer.writeheader()
        for row in reader:
            heldout = row["benchmark"].startswith(f"{BENCHMARK}/")
            if row["model"] in (gains["base"], gains["trained"]) and (
                not heldout or (row["benchmark"], row["language"]) in listed
            ):
                writer.writerow(row)
