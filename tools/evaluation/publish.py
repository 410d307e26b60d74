"""Writes the results of an evaluation folder: its long table, and the models behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from emma.base.files import read_json, write_json
from emma.tools.evaluation.results import Result, merge_results, read_results, write_results
from emma.tools.evaluation.targets import Target

__all__ = ["publish_rows"]


def publish_rows(
    output: Path, new: Sequence[Result], models: Sequence[tuple[Target, str, str]]
) -> list[Result]:
    """Writes `results.parquet`, `results.csv` and `models.json`.

    Args:
        output: evaluation folder.
        new: rows, which replace those with the same model, benchmark and language.
        models: target, role (`trained` or `base`) and SHA-256 of each model.

    Returns:
        All rows of the table, including earlier ones.
    """
    rows = merge_results(read_results(output), new)
    known = read_json(output / "models.json") if (output / "models.json").is_file() else {}
    for target, role, sha256 in models:
        known[target.model] = {
            "role": role,
            "folder": os.path.relpath(target.folder, output),
            "step": target.step,
            "sha256": sha256,
        }
    write_results(output, rows)
    write_json(output / "models.json", known)
    return rows
