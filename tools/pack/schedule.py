"""Hands a component's units to the processes that pack them."""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emma.base.manifest import MANIFEST_NAME
from emma.base.processes import result_of
from emma.base.progress import progress
from emma.base.writers import InUseError
from emma.tools.pack.inputs import Unit
from emma.tools.pack.join import missing_units, work_folder
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.refusal import is_packed
from emma.tools.pack.unit import pack_unit

__all__ = ["pack_units"]

Work = tuple[ComponentPlan, Unit]
"""A unit to pack, and the plan that it is of."""

_POLL_SECONDS = 0.5


def _pack_one(settings: PackSettings, plan: ComponentPlan) -> str | None:
    """Runs in a worker: packs the only unit of a plan; if another process is packing it, returns which."""
    component, work = settings.pack.components[plan.name], work_folder(settings, plan.name)
    (unit,) = plan.units
    encoder = plan.encoder(settings)
    admitted = _admitted(work, plan.engine, settings.tokenizer.sha256)
    encoder.trusted |= admitted
    try:
        pack_unit(unit, plan.name, component, settings.pack, encoder, work, plan.share)
    except InUseError as error:
        return error.writer
    admitted |= encoder.trusted
    return None


@functools.cache
def _admitted(work: Path, engine: str, tokenizer: str) -> set[str]:
    """Languages that the gate has admitted in units of a component that this process packed: what has been compared once
    is not compared again in every unit. Another engine or tokenizer (its SHA-256) is compared anew."""
    return set()


def pack_units(
    settings: PackSettings,
    plans: dict[str, ComponentPlan],
    shard: tuple[int, int] | None,
    workers: int,
    pool: Executor,
) -> None:
    """Packs the missing units of all components; units that other processes are packing are waited for.

    A process packs neighbouring units: languages and words are mostly the same in them, and its engine knows these then.
    """
    numbered = [(plan, unit) for plan in plans.values() for unit in plan.units]
    mine = numbered if shard is None else numbered[shard[0] :: shard[1]]
    work_of = {name: work_folder(settings, name) for name in plans}
    missing = {(plan.name, unit.index) for plan in plans.values() for unit in missing_units(settings, plan)}
    wanted = [(plan, unit) for plan, unit in mine if (plan.name, unit.index) in missing]
    lanes = _lanes(wanted, workers)
    running: dict[Future[str | None], tuple[ComponentPlan, Unit, int]] = {}
    busy: list[Work] = []
    told = False
    bar: tqdm[Any] = progress(
        total=sum(unit.bytes for _, unit in wanted), unit="B", unit_scale=True, desc="pack"
    )
    with bar:
        while True:
            if not any(lanes) and not running and not busy:
                # An engine that one unit refused takes away what other units had packed.
                again = [(plan, unit) for plan, unit in mine if not is_packed(work_of[plan.name], unit.index)]
                again = [(plan, unit) for plan, unit in again if not _has_manifest(settings, plan.name)]
                if not again:
                    break
                lanes = _lanes(again, workers)
            if not any(lanes) and not running:
                time.sleep(_POLL_SECONDS)
                lanes = _lanes(busy, workers)
                busy.clear()
            for lane in set(range(workers)) - {number for _, _, number in running.values()}:
                if not any(lanes):
                    break
                # What another process would have packed last is the least like what it packs now.
                plan, unit = lanes[lane].popleft() if lanes[lane] else max(lanes, key=len).pop()
                running[
                    pool.submit(
                        _pack_one,
                        settings,
                        replace(plan, units=[unit], inputs=[], inputs_passed_over={}, certificates=[]),
                    )
                ] = plan, unit, lane
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                plan, unit, _ = running.pop(task)
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


def _lanes(work: Sequence[Work], count: int) -> list[deque[Work]]:
    """Work cut into `count` parts of neighbours, of about as many bytes each."""
    lanes: list[deque[Work]] = [deque() for _ in range(count)]
    total, done = sum(unit.bytes for _, unit in work), 0
    for plan, unit in work:
        lanes[min(count - 1, done * count // max(total, 1))].append((plan, unit))
        done += unit.bytes
    return lanes


def _has_manifest(settings: PackSettings, name: str) -> bool:
    return (settings.store / name / MANIFEST_NAME).is_file()
