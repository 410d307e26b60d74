"""Joins the packed units of a component: numbers their shards, sums their counts, writes the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.claims import remove_abandoned
from emma.base.errors import UserError
from emma.base.files import atomic_write, fsync_path, read_json, write_json
from emma.base.manifest import FileRecord, Manifest, now, package_versions
from emma.tools.pack.bad_lines import QUARANTINE, check_share
from emma.tools.pack.inputs import Unit
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.refusal import UNIT_FILE, is_packed, unit_name
from emma.tools.pack.sample import PACK_SEED, chance_of_finding
from emma.tools.pack.store import FORMAT, SOURCE_SCHEMA, bin_name, documents_name, token_dtype

__all__ = ["join_units", "missing_units", "proof_of", "refuse_missing", "unit_reports", "work_folder"]


def work_folder(settings: PackSettings, name: str) -> Path:
    """Where a component's plan and packed units are until it is finished."""
    return settings.store / name / ".pack"


def missing_units(settings: PackSettings, plan: ComponentPlan) -> list[Unit]:
    """Units that no process has packed yet, or only with an engine that was refused later."""
    folder = work_folder(settings, plan.name)
    return [unit for unit in plan.units if not is_packed(folder, unit.index)]


def refuse_missing(settings: PackSettings, plan: ComponentPlan) -> None:
    """Raises:
    UserError: units are missing.
    """
    missing = missing_units(settings, plan)
    if missing:
        raise UserError(
            f"{settings.store / plan.name}: {len(missing)} of {len(plan.units)} work units are not packed yet (the first "
            f"is {missing[0].index}); run `emma pack run` again, or the array tasks that failed"
        )


def unit_reports(settings: PackSettings, plan: ComponentPlan) -> list[dict[str, Any]]:
    """What each packed unit says of itself, in order."""
    work = work_folder(settings, plan.name)
    return [read_json(work / unit_name(unit.index) / UNIT_FILE) for unit in plan.units]


def proof_of(settings: PackSettings, plan: ComponentPlan, share: float, more: int = 0) -> dict[str, Any]:
    """What the manifest says of the documents that were encoded twice.

    Args:
        settings: what was packed.
        plan: the component's plan.
        share: of the documents of the fast engine that were drawn.
        more: documents encoded twice after their units were packed.
    """
    reports = unit_reports(settings, plan)
    documents = sum(report["by_fast_engine"] for report in reports)
    fault_share = settings.pack.fault_share
    return {
        "documents": sum(report["encoded_twice"] for report in reports) + more,
        "of": documents,
        "share": share,
        "seed": PACK_SEED,
        "fault_share": fault_share,
        "certainty": chance_of_finding(share, documents, fault_share) if documents else 1.0,
    }


def join_units(settings: PackSettings, plan: ComponentPlan, proof: Mapping[str, Any]) -> None:
    """Gives the shards of all units their numbers and writes `sources.parquet` and the manifest.

    Files are renamed, not copied; the next call completes what a killed one began.

    Args:
        settings: what was packed.
        plan: the component's plan.
        proof: documents that were encoded twice, of how many, and which share was drawn.

    Raises:
        UserError: units are missing; more records are unusable, or more of a language's tokens unknown, than the
            recipe allows.
    """
    folder, work = settings.store / plan.name, work_folder(settings, plan.name)
    remove_abandoned(folder.glob(".*.partial"))
    layout = work / "layout.json"
    if not layout.is_file():
        refuse_missing(settings, plan)
        reports = unit_reports(settings, plan)
        _check_limits(settings, plan.name, reports)
        write_json(layout, reports)
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
    if any(report["counts"]["bad_lines"] for report in reports):
        with atomic_write(folder / QUARANTINE) as handle:
            for report in reports:
                if report["counts"]["bad_lines"]:
                    handle.write((work / unit_name(report["index"]) / QUARANTINE).read_bytes())
        outputs.append(FileRecord.of(folder / QUARANTINE, folder))
    _manifest(settings, plan, reports, shards, outputs, proof).write(folder)


def _check_limits(settings: PackSettings, name: str, reports: list[dict[str, Any]]) -> None:
    """Raises:
    UserError: no document is left, or more records are unusable, or more of a language's tokens unknown, than the
        recipe allows.
    """
    counts = [report["counts"] for report in reports]
    if not any(each["kept"] for each in counts):
        records = sum(each["in"] for each in counts)
        raise UserError(
            f"component {name}: no document is left of {records} records. Fix: correct data.pack.components.{name}.inputs, "
            f"and remove {settings.store / name}"
        )
    bad = sum(each["bad_lines"] for each in counts)
    if bad:
        first = next(report["first_bad_line"] for report in reports if report["first_bad_line"])
        check_share(
            name,
            settings.pack.components[name].max_bad_lines,
            bad,
            sum(each["in"] for each in counts),
            f"{first['file']}:{first['line']}: {first['reason']}",
        )
    tokens: Counter[str] = Counter()
    for report in reports:
        for language, _, _, count, _ in report["sources"]:
            tokens[language] += count
    shares = {language: count / tokens[language] for language, count in _unknown(reports).items()}
    above = {language: share for language, share in shares.items() if share > settings.pack.max_unknown}
    if above:
        worst = ", ".join(
            f"{name} {above[name]:.1%}" for name in sorted(above, key=above.__getitem__, reverse=True)[:8]
        )
        raise UserError(
            f"component {name}: the tokenizer lacks too much of {len(above)} languages: of their tokens, so many are the one "
            f"for what is unknown: {worst}; data.pack.max_unknown allows {settings.pack.max_unknown:.1%}. Leave these "
            "languages out, take a tokenizer that has them, or raise max_unknown and run the command again"
        )


def _unknown(reports: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens for what the vocabulary lacks, by language."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report["unknown"])
    return dict(sorted(total.items()))


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
    proof: Mapping[str, Any],
) -> Manifest:
    removed: Counter[str] = Counter()
    for report in reports:
        removed.update(report["counts"]["removed_by"])
    totals = {
        key: sum(report["counts"][key] for report in reports)
        for key in ("in", "kept", "documents_cut", "tokens", "bad_lines")
    }
    checksums = orjson.dumps([record.checksum for record in outputs])
    engine, passed_over = plan.engine_now(work_folder(settings, plan.name))
    files = {file.path: number for number, file in enumerate(plan.inputs)}
    refused = sorted({*plan.refused, *(language for report in reports for language in report["refused"])})
    return Manifest(
        "pack",
        settings.recipe_sha256,
        inputs=[FileRecord(**record) for report in reports for record in report["inputs"]],
        outputs=outputs,
        counts={**totals, "removed_by": dict(sorted(removed.items()))},
        versions=package_versions(("emma-recipes", "numpy", "pyarrow", "tokenizers", engine)),
        started=now(),
        extra={
            "format": FORMAT,
            "fingerprint": hashlib.sha256(checksums).hexdigest(),
            "dtype": token_dtype(settings.tokenizer.vocab_size).name,
            "settings": plan.settings,
            "tokenizer": str(settings.tokenizer.path),
            "engine": engine,
            "engines_passed_over": passed_over,
            "languages_encoded_by_the_reference": refused if engine == plan.engine else [],
            "certificates": plan.certificates,
            "encoded_twice": dict(proof),
            "unknown_tokens": _unknown(reports),
            "inputs_passed_over": plan.inputs_passed_over,
            "units": [
                {**unit.to_json(files), "shards": len(report["shards"])}
                for unit, report in zip(plan.units, reports, strict=True)
            ],
            "input_files": [vars(file) for file in plan.inputs],
            "shards": [{"bytes": shard["bytes"], "rows": shard["rows"]} for shard in shards],
        },
    )
