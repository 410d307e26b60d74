"""Packs a store: plan, gate, work units on all cores, joining. Any step can be killed and run again;
processes on any machines share the units."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME
from emma.base.processes import available_cores, result_of
from emma.base.progress import progress
from emma.base.staging import clear_leftovers
from emma.base.writers import InUseError, Lock, sole_writer
from emma.tools.pack.engine import REFERENCE, forget_engine
from emma.tools.pack.gate import gate_verdicts
from emma.tools.pack.inputs import InputFile, Unit
from emma.tools.pack.join import join_units, missing_units, work_folder
from emma.tools.pack.plan import (
    ComponentPlan,
    PackSettings,
    difference,
    input_difference,
    plan_component,
)
from emma.tools.pack.store import open_component
from emma.tools.pack.unit import pack_unit
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
            missing = missing_units(settings, plan)
            report[name] = {"status": "unfinished", "units": len(plan.units), "units_missing": len(missing)}
        else:
            _finish(settings, plan)
            report[name] = {"status": "packed", **_counts(settings, name)}
    return report


def _plan(
    settings: PackSettings, name: str, finish_only: bool, pool: Executor, workers: int
) -> ComponentPlan | None:
    """The plan of a component with the gate's verdicts, from disk if it was made before; None if another
    process has finished the component in the meantime.

    Raises:
        UserError: inputs or settings changed since the plan was made, or there is none and `finish_only` is
            set.
    """
    fresh = None if finish_only else plan_component(settings, name)
    # One process makes the plan; the others wait for it and read it.
    with sole_writer(settings.store / name, wait=True):
        if _is_finished(settings, name):
            return None
        path = work_folder(settings, name) / "plan.json"
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
    path = work_folder(settings, name) / "plan.json"
    if not path.is_file():
        raise UserError(
            f"{path.parent}: nothing of component {name!r} has been packed yet; run `emma pack run` first"
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


def _remove_work(settings: PackSettings, name: str, lock: Lock | None = None) -> None:
    """Removes a finished component's work folder, except what a process on another machine may still be
    writing.

    Args:
        settings: what was packed.
        name: the component.
        lock: that of a caller that is the component's sole writer.
    """
    work = work_folder(settings, name)
    if not work.is_dir():
        return
    with sole_writer(settings.store / name, wait=True) if lock is None else nullcontext(lock) as held:
        stay = list(work.glob(".*.partial")) if _is_being_packed(work) else clear_leftovers(work, held)
        if not stay:
            # A worker whose parent was killed may be writing there still; the next call removes what it
            # leaves.
            shutil.rmtree(work, ignore_errors=True)
            return
        for path in work.iterdir():
            if path.is_dir() and path not in stay:
                shutil.rmtree(path, ignore_errors=True)


def _is_being_packed(work: Path) -> bool:
    """Whether a process packs a unit still, which one on another machine has finished before it.

    The component's lock says nothing of that: who packs a unit holds that unit's.
    """
    for path in work.glob(".unit-*.lock"):
        try:
            with sole_writer(work / path.name.removeprefix(".").removesuffix(".lock")):
                pass
        except InUseError:
            return True
    return False


def _pack_one(settings: PackSettings, plan: ComponentPlan) -> str | None:
    """Runs in a worker: packs the only unit of a plan; if another process is packing it, returns which."""
    component, work = settings.pack.components[plan.name], work_folder(settings, plan.name)
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
    missing = {(plan.name, unit.index) for plan in plans.values() for unit in missing_units(settings, plan)}
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


def _finish(settings: PackSettings, plan: ComponentPlan) -> None:
    """Joins a component's units, unless another process has done so, and removes the work folder.

    Raises:
        UserError: units are missing.
    """
    with sole_writer(settings.store / plan.name, wait=True) as lock:
        if not _is_finished(settings, plan.name):
            try:
                join_units(settings, plan)
            except UserError:
                # Another machine, which this one's lock did not keep out, may have joined and removed them.
                if not _is_finished(settings, plan.name):
                    raise
        _remove_work(settings, plan.name, lock)
