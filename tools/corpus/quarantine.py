"""Unusable lines: quarantined with file, line and reason; above the recipe's share, the build fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.reading import Fault
from emma.tools.corpus.source_files import SourceFile

__all__ = ["Quarantine", "check_bad_lines", "write_quarantine"]


_MANY = 10_000
"""Number of unusable lines after which a file with too large a share of them is not read further."""


@dataclass
class Quarantine:
    """The unusable lines of one file, up to a share; `rows` counts the usable ones."""

    share: float
    rows: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: SourceFile, fault: Fault) -> None:
        """Quarantines a line.

        Raises:
            UserError: the recipe allows no unusable lines, or the file has far too many.
        """
        if self.share == 0:
            raise UserError(
                f"{file.path}: line {fault.number}: {fault.reason}; fix the line, or quarantine a share of bad lines "
                f"with data.corpus.sources.{file.source}.max_bad_lines"
            )
        if len(self.faults) >= _MANY and len(self.faults) > self.share * (self.rows + len(self.faults)):
            raise UserError(
                f"{file.path}: {len(self.faults)} of the first {self.rows + len(self.faults)} lines are unusable; the "
                f"last is line {fault.number}: {fault.reason}; is it a {file.source} file at all?"
            )
        self.faults.append(
            {"file": file.path, "line": fault.number, "reason": fault.reason, "excerpt": fault.excerpt}
        )

    def to_json(self) -> dict[str, Any]:
        """`rows` and `faults`, for the task's result."""
        return {"rows": self.rows, "faults": self.faults}


def check_bad_lines(corpus: Corpus, files: Sequence[SourceFile], read: Sequence[Any]) -> None:
    """Checks each source's share of unusable lines against its limit.

    Raises:
        UserError: a source exceeds it; the message names its first unusable line.
    """
    for name, source in corpus.sources.items():
        results = [r["faults"] for file, r in zip(files, read, strict=True) if file.source == name]
        faults = [fault for result in results for fault in result["faults"]]
        lines = sum(result["rows"] for result in results) + len(faults)
        if len(faults) > source.max_bad_lines * lines:
            first = faults[0]
            raise UserError(
                f"source {name}: {len(faults)} of {lines} lines are unusable ({len(faults) / lines:.2%}), more than "
                f"max_bad_lines allows ({source.max_bad_lines:.2%}); the first is {first['file']}: line "
                f"{first['line']}: {first['reason']}; fix the file or raise data.corpus.sources.{name}.max_bad_lines"
            )


def write_quarantine(root: Path, files: Sequence[SourceFile], read: Sequence[Any]) -> None:
    """Writes `quarantine/<source>.jsonl` for each source with unusable lines: file, line, reason, excerpt."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for file, result in zip(files, read, strict=True):
        by_source.setdefault(file.source, []).extend(result["faults"]["faults"])
    for name, faults in by_source.items():
        path = root / "quarantine" / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        if faults:
            with atomic_write(path) as handle:
                handle.writelines(orjson.dumps(fault, option=orjson.OPT_APPEND_NEWLINE) for fault in faults)
