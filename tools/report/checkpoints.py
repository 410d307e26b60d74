"""A run as of one of its evaluated checkpoints: `RUN@STEP`."""

from __future__ import annotations

import re
from dataclasses import replace

from emma.base.errors import UserError
from emma.tools.evaluation.gains import compare
from emma.tools.evaluation.groups import LanguageFacts, order_categories
from emma.tools.evaluation.stored import stored_scores
from emma.tools.report.records import RunRecord, read_run

__all__ = ["facts_of", "read_checkpoint"]

_AT = re.compile(r"(.+)@(\d+)")


def read_checkpoint(name: str) -> RunRecord:
    """A run or, for `RUN@STEP`, what was known about it at that step: earlier steps, its scores, its gains
    over the base.

    Raises:
        UserError: the run does not exist, or the step was not evaluated.
    """
    match = _AT.fullmatch(name)
    if match is None:
        return read_run(name)
    return _at(read_run(match[1]), int(match[2]))


def _at(run: RunRecord, step: int) -> RunRecord:
    evaluated = sorted(
        model.step for model in run.models if model.role == "trained" and model.step is not None
    )
    if step not in evaluated:
        known = ", ".join(map(str, evaluated)) or "none"
        raise UserError(
            f"{run.name}@{step}: this step was not evaluated (evaluated: {known}); "
            f"`emma evaluate run {run.folder} --step {step}` evaluates it"
        )
    models = [model for model in run.models if model.role == "base" or (model.step or 0) <= step]
    found = replace(
        run,
        checkpoint=step,
        models=models,
        steps=[row for row in run.steps if row["step"] <= step],
        validations=[row for row in run.validations if row["step"] <= step],
        exports=[export for export in run.exports if export <= step],
        parity=run.parity if run.exports and run.exports[-1] <= step else None,
    )
    return replace(found, gains=_gains(found))


def _gains(run: RunRecord) -> dict[str, object] | None:
    """Gains of the run's latest checkpoint over its base, from the scores of individual documents."""
    trained = [model for model in run.models if model.role == "trained"][-1]
    base = next((model for model in run.models if model.role == "base"), None)
    if base is None or (run.gains and run.gains["trained"] == trained.name):
        return run.gains
    folder = run.folder / "evaluation"
    scores = [stored_scores(folder, model, run.results) for model in (base, trained)]
    if not set(scores[0]) & set(scores[1]):
        return None
    return compare(base.name, trained.name, scores[0], scores[1], facts_of([run])).to_dict()


def facts_of(runs: list[RunRecord]) -> LanguageFacts:
    """Categories, mix, and languages seen by the base, as recorded by the runs' evaluations; the first run
    takes precedence."""
    category: dict[tuple[str, str], str] = {}
    seen: set[str] = set()
    known = False
    for run in reversed(runs):
        for row in run.gains["languages"] if run.gains else ():
            if row["category"]:
                category[row["kind"], row["language"]] = row["category"]
            if row["seen_by_base"] is not None:
                known = True
                if row["seen_by_base"]:
                    seen |= set(row["language"].split("-"))
    trained = None
    if len(runs) == 1 and runs[0].gains:
        rows = runs[0].gains["languages"]
        if any(row["trained_on"] is not None for row in rows):
            trained = frozenset((row["kind"], row["language"]) for row in rows if row["trained_on"])
    order = order_categories(category.values(), runs[0].recipe.data.mix)
    return LanguageFacts(category, order, trained, frozenset(seen) if known else None)
