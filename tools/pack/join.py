"""Joins the packed units of a component: numbers their shards, sums their counts, writes the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write, fsync_path, read_json, write_json
from emma.base.manifest import FileRecord, Manifest, now, package_versions
from emma.tools.pack.inputs import Unit
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.store import FORMAT, SOURCE_SCHEMA, bin_name, documents_name, token_dtype
from emma.tools.pack.unit import UNIT_FILE, unit_name

__all__ = ["join_units", "missing_units", "work_folder"]


def work_folder(settings: PackSettings, name: str) -> Path:
    """Where a component's plan and packed units are until it is finished."""
    return settings.store / name / ".pack"


def missing_units(settings: PackSettings, plan: ComponentPlan) -> list[Unit]:
    """Units that no process has packed yet."""
    folder = work_folder(settings, plan.name)
    return [unit for unit in plan.units if not (folder / unit_name(unit.index) / UNIT_FILE).is_file()]


def join_units(settings: PackSettings, plan: ComponentPlan) -> None:
    """Gives the shards of all units their numbers and writes `sources.parquet` and the manifest.

    Files are renamed, not copied; the next call completes what a killed one began.

    Raises:
        UserError: units are missing.
    """
    folder, work = settings.store / plan.name, work_folder(settings, plan.name)
    layout = work / "layout.json"
    if not layout.is_file():
        missing = missing_units(settings, plan)
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(plan.units)} work units are not packed yet (the first is "
                f"{missing[0].index}); run `emma pack run` again, or the array tasks that failed"
            )
        write_json(layout, [read_json(work / unit_name(unit.index) / UNIT_FILE) for unit in plan.units])
    reports = read_json(layout)
    shards: list[dict[str, Any]] = []
    for report in reports:
        unit_folder = work / unit_name(report["index"])
        for index, shard in enumerate(report["shards"]):
            number = len(shards)
            _move(unit_folder / f"shard-{index:03d}.bin", folder / bin_name(number))
            _move(unit_folder / f"documents-{index:03d}.parquet", folder / documents_name(number))
            shards.append(shard)
    fsync_path(folder)
    outputs = []
    for number, shard in enumerate(shards):
        outputs.append(FileRecord(bin_name(number), shard["bytes"], f"sha256:{shard['bin_sha256']}"))
        outputs.append(
            FileRecord(
                documents_name(number), shard["documents_bytes"], f"sha256:{shard['documents_sha256']}"
            )
        )
    sources = _sum_sources(reports)
    with atomic_write(folder / "sources.parquet") as handle:
        pq.write_table(sources, handle, compression="zstd")
    outputs.append(FileRecord.of(folder / "sources.parquet", folder))
    _manifest(settings, plan, reports, shards, outputs).write(folder)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        if not target.exists():
            raise UserError(
                f"{source}: packed before and now missing; remove {target.parent} and pack this component "
                "again"
            ) from None


def _sum_sources(reports: list[dict[str, Any]]) -> pa.Table:
    totals: dict[tuple[str, str], np.ndarray] = {}
    for report in reports:
        for language, split, *counts in report["sources"]:
            totals[language, split] = totals.get((language, split), 0) + np.array(counts, np.int64)
    rows = [(*key, *map(int, totals[key])) for key in sorted(totals)]
    columns = zip(*rows, strict=True) if rows else [[] for _ in SOURCE_SCHEMA]
    return pa.table([list(column) for column in columns], schema=SOURCE_SCHEMA)


def _manifest(
    settings: PackSettings,
    plan: ComponentPlan,
    reports: list[dict[str, Any]],
    shards: list[dict[str, Any]],
    outputs: list[FileRecord],
) -> Manifest:
    removed: Counter[str] = Counter()
    for report in reports:
        removed.update(report["counts"]["removed_by"])
    totals = {
        key: sum(report["counts"][key] for report in reports)
        for key in ("in", "kept", "documents_cut", "tokens")
    }
    checksums = orjson.dumps([record.checksum for record in outputs])
    refused = sorted({*plan.refused, *(language for report in reports for language in report["refused"])})
    return Manifest(
        "pack",
        settings.recipe_sha256,
        inputs=[FileRecord(**record) for report in reports for record in report["inputs"]],
        outputs=outputs,
        counts={**totals, "removed_by": dict(sorted(removed.items()))},
        versions=package_versions(("emma-recipes", "numpy", "pyarrow", "tokenizers", plan.engine)),
        started=now(),
        extra={
            "format": FORMAT,
            "fingerprint": hashlib.sha256(checksums).hexdigest(),
            "dtype": token_dtype(settings.tokenizer.vocab_size).name,
            "settings": plan.settings,
            "tokenizer": str(settings.tokenizer.path),
            "engine": plan.engine,
            "engines_passed_over": plan.passed_over,
            "languages_encoded_by_the_reference": refused,
            "input_files": [vars(file) for file in plan.inputs],
            "shards": [{"bytes": shard["bytes"], "rows": shard["rows"]} for shard in shards],
        },
    )
