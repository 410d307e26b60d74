"""A look into a corpus: its documents, what rules removed, and the lines that no reader could use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.tools.corpus.layout import STAGES, part_path, parts_of, read_row_groups

__all__ = ["documents", "last_stage", "quarantined", "rejected"]


def last_stage(root: Path) -> str:
    """The last finished stage.

    Raises:
        UserError: there is none.
    """
    for stage in reversed(STAGES):
        if (root / stage / "manifest.json").is_file():
            return stage
    raise UserError(f"{root}: no corpus here; build it first (emma corpus build)")


def documents(
    root: Path, stage: str | None, kind: str | None, language: str | None, number: int
) -> list[dict[str, Any]]:
    """The first documents of a stage, an equal share from each language.

    Raises:
        UserError: nothing of this kind and language.
    """
    stage = stage or last_stage(root)
    parts = [p for p in parts_of(root, stage) if kind in (None, p.kind) and language in (None, p.language)]
    if not parts:
        raise UserError(f"{root / stage}: no part of {kind or 'any kind'} in {language or 'any language'}")
    first = [part for part in parts if part.number == 0 or part == parts[0]]
    share = -(-number // len(first))
    found: list[dict[str, Any]] = []
    for part in first:
        table = next(read_row_groups(part_path(root, stage, part)))
        found += table.slice(0, share).to_pylist()
        if len(found) >= number:
            break
    return found[:number]


def rejected(
    root: Path, rule: str, stage: str | None, kind: str | None, language: str | None, number: int
) -> list[dict[str, Any]]:
    """Samples of what a rule removed (`all`: any rule).

    Raises:
        UserError: the rule removed nothing; the message names the rules that did.
    """
    rows = []
    for name in STAGES:
        path = root / "rejected" / f"{name}.parquet"
        if path.is_file() and stage in (None, name):
            rows += pq.read_table(path).to_pylist()
    rules = sorted({row["rule"] for row in rows})
    if rule != "all" and rule not in rules:
        raise UserError(
            f"{root}: `{rule}` removed no document; rules that removed some: {', '.join(rules) or 'none'}"
        )
    found = [
        row
        for row in rows
        if rule in ("all", row["rule"])
        and kind in (None, row["kind"])
        and language in (None, row["language"])
    ]
    return found[:number]


def quarantined(root: Path, number: int) -> list[dict[str, Any]]:
    """The first unusable lines of each source."""
    found: list[dict[str, Any]] = []
    for path in sorted((root / "quarantine").glob("*.jsonl")):
        with path.open("rb") as handle:
            for _, line in zip(range(number), handle, strict=False):
                found.append({"source": path.stem, **orjson.loads(line)})
    return found
