"""Packing a store: plan, gate, work units on all cores, joining; each step can be killed and run again."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.files import atomic_write, fsync_directory, read_json, write_json
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.base.processes import available_cores, result_of
from emma.base.progress import progress
from emma.tools.pack.engine import REFERENCE, forget_engine
from emma.tools.pack.gate import gate_verdicts
from emma.tools.pack.inputs import InputFile, Unit
from emma.tools.pack.plan import (
    ComponentPlan,
    PackSettings,
    difference,
    input_difference,
    plan_component,
)
from emma.tools.pack.store import FORMAT, SOURCE_SCHEMA, bin_name, documents_name, open_component, token_dtype
from emma.tools.pack.unit import UNIT_FILE, pack_unit, unit_name
from emma.tools.pack.workers import worker_pool

__all__ = ["PackReport", "finish_component", "pack_store", "prepare_component"]

PackReport = dict[str, dict[str, Any]]
"""By component: `status` (packed, unfinished, or as it was) and counts."""


def pack_store(
    settings: PackSettings,
    components: Sequence[str] | None = None,
    *,
    shard: tuple[int, int] | None = None,
    finish_only: bool = False,
    workers: int | None = None,
) -> PackReport:
    """Packs components of a store; what is already packed stays as it is.

    Args:
        settings: what to pack.
        components: names; default all of the recipe.
        shard: (i, n): only every n-th work unit, beginning with i (0 ≤ i < n), and no joining; for array tasks.
        finish_only: only join; every unit must be packed.
        workers: processes; default the cores that this process may use.

    Raises:
        UserError: bad input, changed inputs or settings, or units missing at the end.
    """
    names = list(settings.pack.components if components is None else components)
    for name in names:
        if name not in settings.pack.components:
            known = ", ".join(settings.pack.components)
            raise UserError(f"no component {name!r} in data.pack.components; there are {known}")
    workers = workers or available_cores()
    report: PackReport = {}
    file = settings.tokenizer
    processes = partial(
        worker_pool, 1 if finish_only else workers, settings.pack.engine, file.settings, file.vocab_size
    )
    plans = {}
    with processes() as pool:
        file.check()
        for name in names:
            if _is_finished(settings, name):
                report[name] = {"status": "was packed before", **_counts(settings, name)}
            elif finish_only:
                plans[name] = _existing_plan(settings, name)
            else:
                plans[name] = prepare_component(settings, name, pool, workers)
    forget_engine(REFERENCE)
    if plans and not finish_only:
        largest = max((unit.bytes for plan in plans.values() for unit in plan.units), default=0)
        with processes(largest_unit=largest) as pool:
            _pack_units(settings, plans, shard, workers, pool)
    for name, plan in plans.items():
        if shard is not None:
            missing = _missing(settings, plan)
            report[name] = {"status": "unfinished", "units": len(plan.units), "units_missing": len(missing)}
        else:
            finish_component(settings, plan)
            report[name] = {"status": "packed", **_counts(settings, name)}
    return report


def prepare_component(settings: PackSettings, name: str, pool: Executor, workers: int) -> ComponentPlan:
    """The plan of a component, from disk where it was made before, with the gate's verdicts.

    Raises:
        UserError: inputs or settings changed since the plan was made.
    """
    path = _work_folder(settings, name) / "plan.json"
    fresh = plan_component(settings, name)
    if path.is_file():
        plan = _existing_plan(settings, name)
        _refuse_change(settings, plan.settings, plan.inputs, name)
        return plan
    if fresh.engine != REFERENCE:
        engine, passed_over, verdicts = gate_verdicts(settings, fresh, pool, workers)
        fresh = replace(
            fresh,
            engine=engine,
            passed_over=passed_over,
            refused=sorted(language for language, equal in verdicts.items() if not equal),
            trusted=sorted(language for language, equal in verdicts.items() if equal),
        )
    fresh.write(path)
    return fresh


def _existing_plan(settings: PackSettings, name: str) -> ComponentPlan:
    path = _work_folder(settings, name) / "plan.json"
    if not path.is_file():
        raise UserError(
            f"{path.parent}: nothing was packed of component {name!r} yet; run `emma pack run` first"
        )
    return ComponentPlan.read(path)


def _refuse_change(settings: PackSettings, before: dict[str, Any], files: list[InputFile], name: str) -> None:
    folder = settings.store / name
    if change := difference(before, settings.of_component(name)):
        raise UserError(
            f"{folder}: was begun with other settings: {change}. Remove the folder to pack it anew, or give "
            "another paths.store"
        )
    if change := input_difference(files, settings.inputs(name)):
        raise UserError(
            f"{folder}: was begun from other input: {change}. Remove the folder to pack it anew, or give another paths.store"
        )


def _is_finished(settings: PackSettings, name: str) -> bool:
    """Whether the component is there, made from these inputs with these settings.

    Raises:
        UserError: it is there, but made from others.
    """
    folder = settings.store / name
    if not (folder / MANIFEST_NAME).is_file():
        return False
    component = open_component(folder)
    files = [InputFile(**file) for file in component.manifest.extra["input_files"]]
    _refuse_change(settings, component.settings, files, name)
    shutil.rmtree(_work_folder(settings, name), ignore_errors=True)
    return True


def _counts(settings: PackSettings, name: str) -> dict[str, Any]:
    manifest = open_component(settings.store / name).manifest
    keys = ("engine", "languages_encoded_by_the_reference")
    # Stores that were packed before engines were passed over don't say so.
    passed_over = manifest.extra.get("engines_passed_over", {})
    return {
        **manifest.counts,
        **{key: manifest.extra[key] for key in keys},
        "engines_passed_over": passed_over,
    }


def _work_folder(settings: PackSettings, name: str) -> Path:
    return settings.store / name / ".pack"


def _missing(settings: PackSettings, plan: ComponentPlan) -> list[Unit]:
    folder = _work_folder(settings, plan.name)
    return [unit for unit in plan.units if not (folder / unit_name(unit.index) / UNIT_FILE).is_file()]


# ---- processes ------------------------------------------------------------------------------------------------------


def _pack_one(settings: PackSettings, plan: ComponentPlan) -> int:
    """Runs in a worker: packs the one unit of a plan and returns its size in bytes of input."""
    component = settings.pack.components[plan.name]
    (unit,) = plan.units
    pack_unit(
        unit, plan.name, component, settings.pack, plan.encoder(settings), _work_folder(settings, plan.name)
    )
    return unit.bytes


def _pack_units(
    settings: PackSettings,
    plans: dict[str, ComponentPlan],
    shard: tuple[int, int] | None,
    workers: int,
    pool: Executor,
) -> None:
    """Packs the missing units of all components, largest components' units and small ones in one queue."""
    numbered = [(plan, unit) for plan in plans.values() for unit in plan.units]
    mine = numbered if shard is None else numbered[shard[0] :: shard[1]]
    waiting = {(plan.name, unit.index) for plan in plans.values() for unit in _missing(settings, plan)}
    todo = [(plan, unit) for plan, unit in mine if (plan.name, unit.index) in waiting]
    for plan in plans.values():
        _remove_leftovers(_work_folder(settings, plan.name))
    total = sum(unit.bytes for _, unit in todo)
    bar: tqdm[Any] = progress(total=total, unit="B", unit_scale=True, desc="pack")
    with bar:
        queue = iter(todo)
        running: set[Future[int]] = set()
        while True:
            for plan, unit in _take(queue, workers - len(running)):
                running.add(pool.submit(_pack_one, settings, replace(plan, units=[unit], inputs=[])))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for task in done:
                bar.update(result_of(task))


def _take(queue: Iterator[tuple[ComponentPlan, Unit]], count: int) -> Iterable[tuple[ComponentPlan, Unit]]:
    for _ in range(count):
        item = next(queue, None)
        if item is None:
            return
        yield item


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes that no longer run had half written on this machine."""
    for unfinished in folder.glob(".unit-*.partial"):
        process = int(unfinished.name.split(".")[-2])
        if not Path(f"/proc/{process}").exists():
            shutil.rmtree(unfinished, ignore_errors=True)


# ---- joining --------------------------------------------------------------------------------------------------------


def finish_component(settings: PackSettings, plan: ComponentPlan) -> None:
    """Gives the shards of all units their numbers and writes `sources.parquet` and the manifest.

    Nothing is copied: files are renamed; a kill at any moment leaves what the next call completes.

    Raises:
        UserError: units are missing.
    """
    folder, work = settings.store / plan.name, _work_folder(settings, plan.name)
    layout = work / "layout.json"
    if not layout.is_file():
        missing = _missing(settings, plan)
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(plan.units)} work units are not packed yet (the first is "
                f"{missing[0].index}); run `emma pack run` again, or the array tasks that did not end well"
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
    fsync_directory(folder)
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
    # A worker whose parent was killed may still be writing there; the next call removes what is left.
    shutil.rmtree(work, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    if source.exists():
        source.rename(target)
    elif not target.exists():
        raise UserError(
            f"{source}: packed before and now missing; remove {target.parent} and pack this component again"
        )


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
