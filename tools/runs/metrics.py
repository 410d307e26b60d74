"""`metrics.jsonl`: one object per logged step, and one per validation. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import append_line

__all__ = ["append_metrics", "read_lines", "read_metrics"]


def append_metrics(
    path: Path, row: Mapping[str, Any], append: Callable[[Path, bytes], None] = append_line
) -> None:
    """Appends one object as a line; a launch passes its `Fence.append`."""
    append(path, orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Logged steps and validations of a run, each in the order of steps.

    The file only grows: steps that a killed launch logged after its last checkpoint appear twice once the run
    has repeated them. The later row describes the step that the weights went through.

    Raises:
        UserError: a complete line is not a JSON object.
    """
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for row in read_lines(path):
        (validations if "validation" in row else steps)[row["step"]] = row
    return [steps[step] for step in sorted(steps)], [validations[step] for step in sorted(validations)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file with one in each line, without a last line that is still being written; empty if there
    is no file.

    Raises:
        UserError: a complete line is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}). Fix: remove the line") from None
    return rows
