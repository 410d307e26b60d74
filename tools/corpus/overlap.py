"""Finds a corpus's documents that share n-grams with evaluation texts, and the benchmark items in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.base.progress import progress
from emma.recipes.schema.corpus import Decontamination
from emma.tools.corpus.benchmark_items import Found, ItemIndex
from emma.tools.corpus.layout import part_path, parts_of, read_row_groups, text_columns
from emma.tools.corpus.stage import Build
from emma.tools.languages.scripts import script_of

__all__ = ["Batch", "corpus_batches", "report_overlap"]

_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("language", pa.string()),
        ("id", pa.string()),
        ("ngrams", pa.int64()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Batch:
    """Documents of one kind and language.

    `sides` holds their texts: one list, or one per side for the sentence pairs of a corpus. `scripts` holds,
    for each side, the scripts that its texts may be in.
    """

    kind: str
    language: str
    ids: list[str]
    sides: list[list[str]]
    scripts: list[list[str]]


def corpus_batches(build: Build, stage: str) -> Iterator[Batch]:
    """Documents of a stage.

    Raises:
        UserError: the stage does not exist.
    """
    parts = parts_of(build.root, stage)
    if not parts:
        raise UserError(f"{build.root / stage}: no corpus here; build it first (emma corpus build)")
    for part in progress(parts, desc="overlap", unit="part"):
        names = text_columns(part.kind)
        sides = part.language.split("-") if part.kind == "parallel" else [part.language]
        scripts = [["" if part.kind == "code" else script_of(side)] for side in sides]
        for table in read_row_groups(part_path(build.root, stage, part), ["id", *names]):
            texts = [table.column(name).to_pylist() for name in names]
            yield Batch(part.kind, part.language, table.column("id").to_pylist(), texts, scripts)


def report_overlap(
    build: Build, benchmarks: Path | None, stage: str, batches: Iterator[Batch] | None = None
) -> dict[str, Any]:
    """Searches a stage, or `batches` in its place, for evaluation texts.

    Writes `statistics/contaminated-STAGE.parquet` (documents) and
    `statistics/contaminated-items-STAGE.parquet` (items by benchmark, language and split).

    Returns:
        `documents` and `contaminated` (counts), `languages` (those with contaminated documents), `examples`
        (the file of documents), `benchmarks` (one row per benchmark, language and split: the number of
        `items`, of those long enough to be `searched`, and of those `found`), `items` (the file of items).

    Raises:
        UserError: no benchmarks are named, or the stage does not exist.
    """
    settings = build.corpus.decontamination
    if benchmarks is not None:
        settings = (settings or Decontamination(benchmarks="")).model_copy(
            update={"benchmarks": str(benchmarks)}
        )
    if settings is None:
        raise UserError(
            "no evaluation texts: give --benchmarks, or set data.corpus.decontamination.benchmarks in the recipe"
        )
    index = ItemIndex.of_folder(settings)
    rows: list[dict[str, Any]] = []
    totals: dict[tuple[str, str], list[int]] = {}
    for batch in corpus_batches(build, stage) if batches is None else batches:
        total = totals.setdefault((batch.kind, batch.language), [0, 0])
        total[0] += len(batch.ids)
        counts = np.zeros(len(batch.ids), np.int64)
        for texts, scripts in zip(batch.sides, batch.scripts, strict=True):
            for script in scripts:
                counts += index.overlaps(texts, script)
        for row in np.flatnonzero(counts).tolist():
            total[1] += 1
            rows.append(
                {
                    "kind": batch.kind,
                    "language": batch.language,
                    "id": batch.ids[row],
                    "ngrams": int(counts[row]),
                    "text": "\t".join(texts[row] for texts in batch.sides)[:1000],
                }
            )
    path = build.root / "statistics" / f"contaminated-{stage}.parquet"
    with atomic_write(path) as handle:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), handle, compression="zstd")
    found = index.found()
    items = build.root / "statistics" / f"contaminated-items-{stage}.parquet"
    _write_items(items, found)
    return {
        "documents": sum(total[0] for total in totals.values()),
        "contaminated": len(rows),
        "languages": [
            {"kind": kind, "language": language, "documents": documents, "contaminated": contaminated}
            for (kind, language), (documents, contaminated) in sorted(totals.items())
            if contaminated
        ],
        "examples": str(path),
        "benchmarks": [asdict(row) for row in found],
        "items": str(items),
    }


def _write_items(path: Path, rows: Sequence[Found]) -> None:
    names = [field.name for field in fields(Found)]
    types = [pa.string()] * 3 + [pa.int64()] * 3
    table = pa.Table.from_pylist(
        [asdict(row) for row in rows], schema=pa.schema(list(zip(names, types, strict=True)))
    )
    with atomic_write(path) as handle:
        pq.write_table(table, handle, compression="zstd")
