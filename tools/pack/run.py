"""Packs a store: plan, gate, work units on all cores, joining. Any step can be killed and run again;
processes on any machines share the units."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
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
from emma.base.files import atomic_write, fsync_path, read_json, write_json
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.base.processes import available_cores, result_of
from emma.base.progress import progress
from emma.base.staging import InUseError, Lock, clear_leftovers, sole_writer
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

__all__ = ["PackReport", "pack_store"]

PackReport = dict[str, dict[str, Any]]
"""By component: `status` (packed, was packed before, or unfinished) and counts."""

_POLL_SECONDS = 0.5


def pack_store(
    settings: PackSettings,
    components: Sequence[str] | None = None,
    *,
    shard: tuple[int, int] | None = None,
    finish_only: bool = False,
    workers: int | None = None,
) -> PackReport:
    """Packs components of a store; finished ones are left alone.

    Args:
        settings: what to pack.
        components: names; by default all of the recipe.
        shard: (i, n): only every n-th work unit from the i-th (0 ≤ i < n), without joining; for array tasks.
        finish_only: only join; every unit must be packed.
        workers: processes; by default one per core that this process may use.

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
            plan = None if _is_finished(settings, name) else _plan(settings, name, finish_only, pool, workers)
            if plan is None:
                _remove_work(settings, name)
                report[name] = {"status": "was packed before", **_counts(settings, name)}
            else:
                plans[name] = plan
    forget_engine(REFERENCE)
    if plans and not finish_only:
        largest = max((unit.bytes for plan in plans.values() for unit in plan.units), default=0)
        with processes(largest_unit=largest) as pool:
            _pack_units(settings, plans, shard, workers, pool)
    for name, plan in plans.items():
        if shard is not None and not _is_finished(settings, name):
            missing = _missing(settings, plan)
            report[name] = {"status": "unfinished", "units": len(plan.units), "units_missing": len(missing)}
        else:
            _finish(settings, plan)
            report[name] = {"status": "packed", **_counts(settings, name)}
    return report


def _plan(
    settings: PackSettings, name: str, finish_only: bool, pool: Executor, workers: int
) -> ComponentPlan | None:
    """The plan of a component with the gate's verdicts, from disk where it was made before; None where
    another process has finished the component in the meantime.

    Raises:
        UserError: inputs or settings changed since the plan was made, or there is none and `finish_only` is
            set.
    """
    fresh = None if finish_only else plan_component(settings, name)
    # One process makes the plan; the others wait for it and read it.
    with sole_writer(settings.store / name, wait=True):
        if _is_finished(settings, name):
            return None
        path = _work_folder(settings, name) / "plan.json"
        if fresh is None or path.is_file():
            plan = _existing_plan(settings, name)
            if fresh is not None:
                _refuse_change(settings, plan.settings, plan.inputs, name)
            return plan
        plan = _with_verdicts(settings, fresh, pool, workers)
        plan.write(path)
        return plan


def _with_verdicts(
    settings: PackSettings, fresh: ComponentPlan, pool: Executor, workers: int
) -> ComponentPlan:
    if fresh.engine != REFERENCE:
        engine, passed_over, verdicts = gate_verdicts(settings, fresh, pool, workers)
        return replace(
            fresh,
            engine=engine,
            passed_over=passed_over,
            refused=sorted(language for language, equal in verdicts.items() if not equal),
            trusted=sorted(language for language, equal in verdicts.items() if equal),
        )
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
            f"{folder}: was begun with other settings: {change}. Remove the folder to pack it again, or give "
            "another paths.store"
        )
    if change := input_difference(files, settings.inputs(name)):
        raise UserError(
            f"{folder}: was begun from other input: {change}. Remove the folder to pack it again, or give "
            "another paths.store"
        )


def _is_finished(settings: PackSettings, name: str) -> bool:
    """Whether the component is finished, from these inputs and with these settings.

    Raises:
        UserError: it is finished, but from other inputs or with other settings.
    """
    folder = settings.store / name
    if not (folder / MANIFEST_NAME).is_file():
        return False
    component = open_component(folder)
    files = [InputFile(**file) for file in component.manifest.extra["input_files"]]
    _refuse_change(settings, component.settings, files, name)
    return True


def _counts(settings: PackSettings, name: str) -> dict[str, Any]:
    manifest = open_component(settings.store / name).manifest
    keys = ("engine", "languages_encoded_by_the_reference")
    # Stores of earlier versions lack it.
    passed_over = manifest.extra.get("engines_passed_over", {})
    return {
        **manifest.counts,
        **{key: manifest.extra[key] for key in keys},
        "engines_passed_over": passed_over,
    }


def _work_folder(settings: PackSettings, name: str) -> Path:
    return settings.store / name / ".pack"


def _remove_work(settings: PackSettings, name: str, lock: Lock | None = None) -> None:
    """Removes a finished component's work folder, but for what a process on another machine may still be
    writing.

    Args:
        settings: what was packed.
        name: the component.
        lock: of a caller that is the component's sole writer.
    """
    work = _work_folder(settings, name)
    if not work.is_dir():
        return
    with sole_writer(settings.store / name, wait=True) if lock is None else nullcontext(lock) as held:
        stay = clear_leftovers(work, held)
        if not stay:
            # A worker whose parent was killed may be writing there still; the next call removes what it
            # leaves.
            shutil.rmtree(work, ignore_errors=True)
            return
        for path in work.iterdir():
            if path.is_dir() and path not in stay:
                shutil.rmtree(path, ignore_errors=True)


def _missing(settings: PackSettings, plan: ComponentPlan) -> list[Unit]:
    folder = _work_folder(settings, plan.name)
    return [unit for unit in plan.units if not (folder / unit_name(unit.index) / UNIT_FILE).is_file()]


# ---- processes ------------------------------------------------------------------------------------------------------


def _pack_one(settings: PackSettings, plan: ComponentPlan) -> str | None:
    """Runs in a worker: packs the one unit of a plan; where another process is packing it, returns who."""
    component, work = settings.pack.components[plan.name], _work_folder(settings, plan.name)
    (unit,) = plan.units
    try:
        pack_unit(unit, plan.name, component, settings.pack, plan.encoder(settings), work)
    except InUseError as error:
        return error.writer
    return None


def _pack_units(
    settings: PackSettings,
    plans: dict[str, ComponentPlan],
    shard: tuple[int, int] | None,
    workers: int,
    pool: Executor,
) -> None:
    """Packs the missing units of all components; units that other processes are packing are waited for."""
    numbered = [(plan, unit) for plan in plans.values() for unit in plan.units]
    mine = numbered if shard is None else numbered[shard[0] :: shard[1]]
    missing = {(plan.name, unit.index) for plan in plans.values() for unit in _missing(settings, plan)}
    queue = deque((plan, unit) for plan, unit in mine if (plan.name, unit.index) in missing)
    running: dict[Future[str | None], tuple[ComponentPlan, Unit]] = {}
    busy: list[tuple[ComponentPlan, Unit]] = []
    told = False
    bar: tqdm[Any] = progress(
        total=sum(unit.bytes for _, unit in queue), unit="B", unit_scale=True, desc="pack"
    )
    with bar:
        while queue or running or busy:
            if not queue and not running:
                time.sleep(_POLL_SECONDS)
                queue.extend(busy)
                busy.clear()
            while queue and len(running) < workers:
                plan, unit = queue.popleft()
                running[pool.submit(_pack_one, settings, replace(plan, units=[unit], inputs=[]))] = plan, unit
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                plan, unit = running.pop(task)
                writer = result_of(task)
                if writer is None:
                    bar.update(unit.bytes)
                    continue
                busy.append((plan, unit))
                if not told:
                    print(
                        f"{plan.name}: {writer} is packing unit {unit.index}: sharing the work",
                        file=sys.stderr,
                    )
                    told = True


# ---- joining --------------------------------------------------------------------------------------------------------


def _finish(settings: PackSettings, plan: ComponentPlan) -> None:
    """Gives the shards of all units their numbers and writes `sources.parquet` and the manifest, unless
    another process has done so.

    Files are renamed, not copied; the next call completes what a killed one began.

    Raises:
        UserError: units are missing.
    """
    with sole_writer(settings.store / plan.name, wait=True) as lock:
        if not _is_finished(settings, plan.name):
            _join(settings, plan)
        _remove_work(settings, plan.name, lock)


def _join(settings: PackSettings, plan: ComponentPlan) -> None:
    folder, work = settings.store / plan.name, _work_folder(settings, plan.name)
    layout = work / "layout.json"
    if not layout.is_file():
        missing = _missing(settings, plan)
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
