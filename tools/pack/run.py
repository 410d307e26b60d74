"""Packs a store: plan, gate, work units on all cores, joining. Any step can be killed and run again;
processes on any machines share the units."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME
from emma.base.processes import available_cores, release_memory
from emma.base.staging import clear_leftovers
from emma.base.writers import InUseError, Lock, sole_writer
from emma.tools.pack.certificate import certified_engine, is_certified
from emma.tools.pack.engine import REFERENCE, engines_for
from emma.tools.pack.gate import gate_samples, gate_verdicts
from emma.tools.pack.inputs import InputFile, summary
from emma.tools.pack.join import (
    join_units,
    missing_units,
    work_folder,
)
from emma.tools.pack.plan import ComponentPlan, PackSettings, difference, plan_component
from emma.tools.pack.proof import EngineRefusedError, prove
from emma.tools.pack.sample import share_needed
from emma.tools.pack.schedule import pack_units
from emma.tools.pack.store import open_component
from emma.tools.pack.workers import read_tokenizer, renew_after, start_workers, worker_pool

__all__ = ["LITTLE", "PackReport", "engine_for", "pack_store"]

PackReport = dict[str, dict[str, Any]]
"""By component: `status` (packed, was packed before, or unfinished) and counts."""

LITTLE = 2 << 20
"""Bytes of text that are packed by this process alone, and with the reference where the recipe leaves the choice: others,
and a fast engine, would take longer to load."""


def pack_store(
    settings: PackSettings,
    components: Sequence[str] | None = None,
    *,
    shard: tuple[int, int] | None = None,
    finish_only: bool = False,
    workers: int | None = None,
    fork: bool = False,
) -> PackReport:
    """Packs components of a store; finished ones are left alone.

    Args:
        settings: what to pack.
        components: names; by default all of the recipe.
        shard: (i, n): only every n-th work unit from the i-th (0 ≤ i < n), without joining; for array tasks.
        finish_only: only join; every unit must be packed.
        workers: processes, at most; by default one per core that this process may use.
        fork: whether they may be forked off this process, which then must not have done any other work.

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
    open_names = [name for name in names if not _is_finished(settings, name)]
    begins = bool(open_names) and not finish_only
    wanted, little = engine_for(settings, open_names) if begins else (settings.pack.engine, False)
    if little or workers == 1 or not begins:
        file.check(keep_parsed=begins)
    if little and is_certified(wanted, file):
        workers = 1
    # Before anything is locked: what is forked holds this process's locks too.
    if fork and begins and workers > 1:
        start_workers(settings)
    if workers > 1:
        file.drop_parsed()
    with worker_pool(workers, wanted, file.settings, file.vocab_size) as pool:
        if begins:
            read_tokenizer(file, pool)
        plans = {name: _plan(settings, name, wanted, finish_only, pool, workers) for name in open_names}
        for name in names:
            if plans.get(name) is None:
                _remove_work(settings, name)
                report[name] = {"status": "was packed before", **_counts(settings, name)}
        unfinished = {name: plan for name, plan in plans.items() if plan is not None}
        renew_after(pool, [unit for plan in unfinished.values() for unit in plan.units], workers)
        if unfinished and not finish_only:
            pack_units(settings, unfinished, shard, workers, pool)
        for name, plan in unfinished.items():
            if shard is not None and not _is_finished(settings, name):
                missing = missing_units(settings, plan)
                report[name] = {
                    "status": "unfinished",
                    "units": len(plan.units),
                    "units_missing": len(missing),
                }
                continue
            try:
                _finish(settings, plan, pool, workers)
            except EngineRefusedError as error:
                if finish_only:
                    raise
                print(error, file=sys.stderr, flush=True)
                pack_units(settings, {name: plan}, shard, workers, pool)
                _finish(settings, plan, pool, workers)
            report[name] = {"status": "packed", **_counts(settings, name)}
    return {name: report[name] for name in names}


def engine_for(settings: PackSettings, names: Sequence[str]) -> tuple[str, bool]:
    """What the recipe's `data.pack.engine` means for components, `fastest` or a name; and whether they are little text.

    Raises:
        UserError: a component has no input.
    """
    wanted, little = settings.pack.engine, not settings.exceed(names, LITTLE)
    return (REFERENCE if little and wanted == "fastest" else wanted), little


def _plan(
    settings: PackSettings, name: str, wanted: str, finish_only: bool, pool: Executor, workers: int
) -> ComponentPlan | None:
    """The plan of a component with the gate's verdicts, from disk if it was made before; None if another
    process has finished the component in the meantime.

    Raises:
        UserError: inputs or settings changed since the plan was made, or there is none and `finish_only` is
            set.
    """
    # One process makes the plan; the others wait for it and read it.
    with sole_writer(settings.store / name, wait=True):
        if _is_finished(settings, name):
            return None
        path = work_folder(settings, name) / "plan.json"
        if finish_only or path.is_file():
            plan = _existing_plan(settings, name)
            if not finish_only:
                _refuse_change(settings, plan.settings, plan.inputs, plan.inputs_passed_over, name)
            return plan
        fresh = plan_component(settings, name)
        if fresh.inputs_passed_over:
            print(f"{name}: passed over: {summary(fresh.inputs_passed_over)}", file=sys.stderr, flush=True)
        plan = _with_verdicts(settings, fresh, wanted, pool, workers)
        plan.write(path)
        return plan


def _with_verdicts(
    settings: PackSettings, fresh: ComponentPlan, wanted: str, pool: Executor, workers: int
) -> ComponentPlan:
    engine, passed_over, certificates = certified_engine(wanted, settings.tokenizer, pool, workers)
    if wanted != settings.pack.engine:
        reason = "loading a faster engine would take longer than encoding so little text"
        passed_over = dict.fromkeys(engines_for(settings.pack.engine)[:-1], reason) | passed_over
    plan = replace(
        fresh,
        engine=engine,
        passed_over=passed_over,
        certificates=[asdict(certificate) for certificate in certificates],
    )
    if engine == REFERENCE:
        return plan
    samples, documents = gate_samples(settings, plan)
    release_memory()
    verdicts = gate_verdicts(settings, engine, samples, pool, workers)
    return replace(
        plan,
        refused=sorted(language for language, equal in verdicts.items() if not equal),
        trusted=sorted(language for language, equal in verdicts.items() if equal),
        share=share_needed(documents, settings.pack.fault_share),
    )


def _existing_plan(settings: PackSettings, name: str) -> ComponentPlan:
    path = work_folder(settings, name) / "plan.json"
    if not path.is_file():
        raise UserError(
            f"{path.parent}: nothing of component {name!r} has been packed yet; run `emma pack run` first"
        )
    return ComponentPlan.read(path)


def _refuse_change(
    settings: PackSettings,
    before: dict[str, Any],
    files: list[InputFile],
    passed_over: Mapping[str, str] | None,
    name: str,
) -> None:
    folder = settings.store / name
    if change := difference(before, settings.of_component(name)):
        raise UserError(
            f"{folder}: was begun with other settings: {change}. Remove the folder to pack it again, or give "
            "another paths.store"
        )
    if change := settings.input_change(name, files, passed_over):
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
    # Stores of earlier versions lack what was passed over.
    passed_over = component.manifest.extra.get("inputs_passed_over")
    _refuse_change(settings, component.settings, files, passed_over, name)
    return True


def _counts(settings: PackSettings, name: str) -> dict[str, Any]:
    manifest = open_component(settings.store / name).manifest
    keys = ("engine", "languages_encoded_by_the_reference")
    # Stores of earlier versions lack these.
    later: dict[str, dict[str, Any]] = {
        "engines_passed_over": {},
        "encoded_twice": {},
        "unknown_tokens": {},
        "inputs_passed_over": {},
    }
    return {
        **manifest.counts,
        **{key: manifest.extra[key] for key in keys},
        **{key: manifest.extra.get(key, value) for key, value in later.items()},
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
        if not work.is_dir():
            return  # the process that was waited for has removed it
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


def _finish(settings: PackSettings, plan: ComponentPlan, pool: Executor, workers: int) -> None:
    """Joins a component's units, unless another process has done so, and removes the work folder.

    Raises:
        UserError: units are missing.
    """
    with sole_writer(settings.store / plan.name, wait=True) as lock:
        if not _is_finished(settings, plan.name):
            try:
                proof = prove(settings, plan, pool, workers)
                join_units(settings, plan, proof)
            except UserError:
                # Another machine, which this one's lock did not keep out, may have joined and removed them.
                if not _is_finished(settings, plan.name):
                    raise
        _remove_work(settings, plan.name, lock)
