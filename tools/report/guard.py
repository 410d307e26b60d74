"""What a run's guard has watched and decided, for its page and its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from emma.tools.charts.inline import Series, line_chart
from emma.tools.report.records import RunRecord
from emma.tools.runs.decision import Decision, read_decision
from emma.tools.runs.forgetting import Look

__all__ = ["GuardView", "guard_sentences", "guard_view"]


@dataclass(frozen=True)
class GuardView:
    """The section of a page.

    Attributes:
        action: of the recipe.
        false_alarms: probability of one in the whole run, in percent.
        looks: at each guarded group, the latest one.
        chart: rise of each group over steps; None before the first look.
        decision: why the guard ended the run; None if it did not.
        after: run before this phase, and its step; None for a run that is no phase of a guard.
    """

    action: str
    false_alarms: float
    looks: list[Look]
    chart: Markup | None
    decision: Decision | None
    after: tuple[str, int] | None


def guard_view(run: RunRecord) -> GuardView | None:
    """The section; None for a run without a guard that has never had one."""
    guard, decision = run.recipe.guard, read_decision(run.folder)
    rows = [row for row in run.validations if row.get("guard")]
    if guard is None and decision is None and not rows:
        return None
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for look in row["guard"]:
            if look["rise"] is not None:
                steps, rises = series.setdefault(look["group"], ([], []))
                steps.append(float(row["step"]))
                rises.append(100 * look["rise"])
    chart = None
    if series:
        lines = [
            Series(name, *points, f"s{place % 8}") for place, (name, points) in enumerate(series.items())
        ]
        for place, name in enumerate(series):
            bound = guard.groups.get(name) if guard is not None else None
            if bound is not None:
                ends = series[name][0][0], series[name][0][-1]
                lines.append(Series(f"bound of {name}", list(ends), [100 * bound] * 2, f"s{(place + 4) % 8}"))
        chart = line_chart(
            "Rise of bits per byte against the base", lines, unit="percent", height=220, keys=True
        )
    return GuardView(
        guard.action if guard is not None else "warn",
        100 * guard.false_alarms if guard is not None else 0.0,
        [Look(**look) for look in rows[-1]["guard"]] if rows else [],
        chart,
        decision,
        _after(run),
    )


def guard_sentences(run: RunRecord) -> list[str]:
    """What the card of a model says: for each run on the way, what its guard decided; then how it ended."""
    said: list[str] = []
    if (view := guard_view(run)) is None:
        return said
    if view.after is not None:
        name, step = view.after
        before = read_decision(run.folder.parent / name)
        if before is not None:
            parts = before.replay.get("parts", {})
            more = ", ".join(f"{100 * part:g} % more text of {group}" for group, part in parts.items())
            said.append(
                f"At step {step} of {name}, forgetting was above its bound ({before.reason}). The rest of the budget was "
                f"trained as a phase with {more} ({before.replay.get('rule') or 'fixed parts'}), on documents that had not "
                "been read."
            )
    said += [f"{look}." for look in view.looks]
    if view.decision is not None:
        said.append(f"Its guard ended the run at step {view.decision.step}: {view.decision.reason}.")
    return said


def _after(run: RunRecord) -> tuple[str, int] | None:
    start: Any = run.recipe.start
    if start.mode != "phase" or start.checkpoint is None or start.step is None:
        return None
    name = Path(start.checkpoint).name
    decision = read_decision(run.folder.parent / name)
    return (name, start.step) if decision is not None and decision.phase == run.folder.name else None
