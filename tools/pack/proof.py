"""The last step of a component's proof: where fewer documents were encoded twice than their number wants, more are."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.base.processes import result_of
from emma.tools.pack.join import proof_of, refuse_missing, unit_reports, work_folder
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.recheck import Rechecked, recheck_unit
from emma.tools.pack.refusal import refuse_engine, unit_name
from emma.tools.pack.sample import PACK_SEED, Draw, share_needed

__all__ = ["EngineRefusedError", "prove"]


class EngineRefusedError(UserError):
    """What an engine has packed must be packed again."""


def prove(settings: PackSettings, plan: ComponentPlan, pool: Executor, workers: int) -> dict[str, Any]:
    """Draws more documents if the component has fewer than the plan took it to have, so that too small a share of them
    was encoded twice.

    Raises:
        UserError: units are missing.
        EngineRefusedError: one of these documents has wrong ids.
    """
    work = work_folder(settings, plan.name)
    refuse_missing(settings, plan)
    reports = unit_reports(settings, plan)
    done = work / "encoded-again.json"
    if done.is_file():
        return proof_of(settings, plan, **read_json(done))
    documents = sum(report["by_fast_engine"] for report in reports)
    needed = share_needed(documents, settings.pack.fault_share)
    if plan.share >= needed:
        return proof_of(settings, plan, plan.share)
    more = 0
    queue = deque(
        (unit, report) for unit, report in zip(plan.units, reports, strict=True) if report["by_fast_engine"]
    )
    running: dict[Future[Rechecked], None] = {}
    while queue or running:
        while queue and len(running) < workers:
            unit, report = queue.popleft()
            folder = work / unit_name(unit.index)
            shards = [
                (folder / f"shard-{n:03d}.bin", folder / f"documents-{n:03d}.parquet")
                for n in range(len(report["shards"]))
            ]
            draw = Draw(PACK_SEED, unit.index, needed, low=plan.share)
            running[pool.submit(recheck_unit, settings, plan.name, unit, shards, draw)] = None
        for task in wait(running, return_when=FIRST_COMPLETED).done:
            del running[task]
            result = result_of(task)
            more += result.documents
            if result.wrong:
                refuse_engine(
                    work, plan.engine, f"{plan.engine} gave the document {result.wrong[0]} wrong ids"
                )
                wait(running)  # they read what will be packed again
                raise EngineRefusedError(
                    f"{settings.store / plan.name}: {plan.engine} gave the document {result.wrong[0]} other ids than the "
                    "reference. The engine is refused: the reference encodes this component, also what it has encoded; "
                    "if this command ends here, `emma pack run` without --finish does that"
                )
    write_json(done, {"share": needed, "more": more})
    return proof_of(settings, plan, needed, more)
