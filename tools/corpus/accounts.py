"""Accounts of a stage: each document is kept, or removed by a named rule; samples of the removed ones."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import CheckFailedError
from emma.base.files import atomic_write

__all__ = ["KEPT", "MEASURES", "Accounts", "Samples", "accounts_path", "measures_of"]

KEPT = "kept"
"""The outcome that is not a rule: the document passes to the next stage."""

MEASURES = ("documents", "characters", "bytes", "tokens", "source_tokens")
"""What is counted: documents (pairs); characters (code points), UTF-8 bytes and whitespace-separated tokens
of all text columns; and, for pairs, the tokens of the source side."""

_SAMPLE_CHARACTERS = 1000


def accounts_path(root: Path, stage: str) -> Path:
    """Path of a stage's accounts."""
    return root / "statistics" / f"accounts-{stage}.parquet"


def measures_of(*texts: str) -> tuple[int, int, int, int, int]:
    """Measures of one document, or of the two sides of one pair."""
    tokens = [len(text.split()) for text in texts]
    size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return 1, sum(map(len, texts)), size, sum(tokens), tokens[0] if len(texts) == 2 else 0


@dataclass
class Accounts:
    """Sums of measures per kind, language, source and outcome."""

    sums: dict[tuple[str, str, str, str], list[int]] = field(default_factory=dict)

    def add(self, kind: str, language: str, source: str, outcome: str, measures: Iterable[int]) -> None:
        """Adds one document, or the sums of many."""
        key = (kind, language, source, outcome)
        row = self.sums.get(key)
        if row is None:
            self.sums[key] = list(measures)
        else:
            row[:] = map(operator.add, row, measures)

    def to_json(self) -> list[list[Any]]:
        """Rows to store in a task's result."""
        return [[*key, *values] for key, values in sorted(self.sums.items())]

    @classmethod
    def merged(cls, results: Iterable[list[list[Any]]]) -> Accounts:
        """Sum of the accounts of several tasks."""
        total = cls()
        for rows in results:
            for row in rows:
                kind, language, source, outcome, *measures = row
                total.add(kind, language, source, outcome, measures)
        return total

    @classmethod
    def read(cls, path: Path) -> Accounts:
        """Reads what `write` wrote."""
        accounts = cls()
        for row in pq.read_table(path).to_pylist():
            key = (row["kind"], row["language"], row["source"], row["outcome"])
            accounts.sums[key] = [row[name] for name in MEASURES]
        return accounts

    def fill_kept(self, came: Accounts) -> None:
        """Fills in the measures of kept documents, as yet only counted: what came in minus what was removed.

        Args:
            came: accounts of the previous stage, whose kept documents came in.

        Raises:
            CheckFailedError: the difference disagrees with the count, which is a bug in this program.
        """
        left = {key[:3]: list(values) for key, values in came.sums.items() if key[3] == KEPT}
        for key, values in self.sums.items():
            if key[3] != KEPT:
                left[key[:3]] = list(map(operator.sub, left[key[:3]], values))
        for (kind, language, source), values in left.items():
            counted = self.sums.get((kind, language, source, KEPT), [0])[0]
            if counted != values[0]:
                raise CheckFailedError(
                    f"documents don't add up: {kind}/{language} from {source} should keep {values[0]}, but kept {counted}"
                )
            if counted:
                self.sums[kind, language, source, KEPT] = values

    def documents(self, outcome: str) -> int:
        """Documents with an outcome."""
        return sum(values[0] for key, values in self.sums.items() if key[3] == outcome)

    def counts(self, came: int) -> dict[str, Any]:
        """`in`, `kept` and `removed_by` (rule → documents) for the manifest.

        Args:
            came: documents that came in, counted where they were read.

        Raises:
            CheckFailedError: they don't add up, which is a bug in this program.
        """
        removed: dict[str, int] = {}
        for (_, _, _, outcome), values in sorted(self.sums.items()):
            if outcome != KEPT:
                removed[outcome] = removed.get(outcome, 0) + values[0]
        kept = self.documents(KEPT)
        if came != kept + sum(removed.values()):
            raise CheckFailedError(
                f"documents don't add up: {came} read, {kept} kept, {sum(removed.values())} removed ({removed})"
            )
        return {"in": came, "kept": kept, "removed_by": removed}

    def write(self, path: Path, stage: str) -> None:
        """Writes the table, with columns `stage kind language source outcome` and the measures."""
        rows = sorted(self.sums.items())
        columns: dict[str, Any] = {"stage": pa.array([stage] * len(rows), pa.string())}
        for index, name in enumerate(("kind", "language", "source", "outcome")):
            columns[name] = pa.array([key[index] for key, _ in rows], pa.string())
        for index, name in enumerate(MEASURES):
            columns[name] = pa.array([values[index] for _, values in rows], pa.int64())
        with atomic_write(path) as handle:
            pq.write_table(pa.table(columns), handle, compression="zstd")


@dataclass
class Samples:
    """The first few documents that each rule removed, per kind and language."""

    limit: int
    rows: list[dict[str, str]] = field(default_factory=list)
    _seen: dict[tuple[str, str, str], int] = field(default_factory=dict)

    SCHEMA = pa.schema(
        [
            (name, pa.string())
            for name in ("stage", "kind", "language", "rule", "id", "detail", "text", "target")
        ]
    )

    def add(self, kind: str, language: str, rule: str, **values: str) -> None:
        """Keeps a removed document (`id`, `detail`, `text`, `target`), up to `limit` per rule."""
        key = (kind, language, rule)
        count = self._seen.get(key, 0)
        if count < self.limit:
            self._seen[key] = count + 1
            row = {"kind": kind, "language": language, "rule": rule}
            for name in ("id", "detail", "text", "target"):
                row[name] = values.get(name, "")[:_SAMPLE_CHARACTERS]
            self.rows.append(row)

    @classmethod
    def merged(cls, limit: int, results: Iterable[Iterable[Mapping[str, str]]]) -> Samples:
        """The first samples of each rule across several tasks, in task order."""
        total = cls(limit)
        for rows in results:
            for row in rows:
                total.add(**row)
        return total

    def write(self, path: Path, stage: str) -> None:
        """Writes the table."""
        rows = [{"stage": stage, **row} for row in self.rows]
        rows.sort(key=lambda row: (row["rule"], row["kind"], row["language"]))
        with atomic_write(path) as handle:
            pq.write_table(pa.Table.from_pylist(rows, schema=self.SCHEMA), handle, compression="zstd")
