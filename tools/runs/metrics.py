"""`metrics.jsonl`: one object a logged step, and one a validation. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import append_line

__all__ = ["append_metrics", "read_metrics"]


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one object as a line."""
    append_line(path, orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Logged steps and validations of a run, each in the order of steps.

    The file is only ever appended to: steps that a killed launch logged after its last checkpoint stand there twice
    when the run has gone through them again. The later row is the one that led on.

    Raises:
        UserError: a complete line is no JSON object.
    """
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return [], []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}). Fix: remove the line") from None
        (validations if "validation" in row else steps)[row["step"]] = row
    return [steps[step] for step in sorted(steps)], [validations[step] for step in sorted(validations)]
