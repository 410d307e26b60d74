"""The page of an optimisation: `index.html`, self-contained."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from emma.base.files import write_text
from emma.tools.charts.inline import Move, Point, Series, line_chart, moves, scatter
from emma.tools.optimise.fit import Fit
from emma.tools.optimise.proposal import percent
from emma.tools.optimise.study import Study
from emma.tools.optimise.verdict import Comparison, Verdict
from emma.tools.report.page import render

__all__ = ["write_page"]

_LARGEST = 4


def write_page(study: Study, fit: Fit, verdict: Verdict | None) -> None:
    """Writes `index.html`: front, shares, predicted against measured, transfer, noise."""
    base = float(fit.law.predict(study.base[None])[0] @ fit.weights)
    page = render(
        "optimise.html.j2",
        folder=Path(__file__).parent,
        study=study,
        fit=fit,
        verdict=verdict,
        run=study.target.recipe.name,
        figures=_figures(fit, verdict, base),
        front=_front(fit),
        shares=_shares(study, fit),
        held_out=_held_out(fit, base),
        checked=[] if verdict is None else [_checked(fit, each) for each in verdict.comparisons],
        rows=_rows(study, fit, verdict),
        parts=_parts(study, fit),
        fixed=[lever.name for n, lever in enumerate(study.target.levers) if not study.free[n]],
        percent=percent,
        mixes=len(fit.trials.of("mix")),
        replicates=len(fit.trials.of("recipe")),
        version_of_page=metadata.version("emma-recipes"),
    )
    write_text(study.results / "index.html", page)


def _figures(fit: Fit, verdict: Verdict | None, base: float) -> list[tuple[str, str, str]]:
    changes = fit.proposal.changes
    worst = int(np.argmax(changes))
    figures = [
        (
            percent(fit.proposal.objective),
            "objective, predicted for the run",
            "good" if fit.proposal.objective < 0 else "",
        ),
        (
            percent(float(changes[worst])),
            f"worst group, predicted for the run: {fit.trials.groups[worst]}",
            "bad",
        ),
        (f"{100 * fit.objective_noise / base:.2f} %", "noise of one proxy’s objective", ""),
        (f"{fit.held_out.rank:.2f}", f"rank correlation on {len(fit.held_out.names)} unseen proxies", ""),
    ]
    if verdict is not None:
        found = verdict.proposal
        tone = {"confirmed": "good", "not confirmed": "bad"}.get(found.word, "")
        measured = f"{percent(found.measured)} ± {100 * found.error:.1f}"
        label = (
            f"objective, measured with new seeds in proxies (predicted for them {percent(found.predicted)})"
        )
        figures[:0] = [(found.word, "verdict of the check", tone), (measured, label, tone)]
    return figures


def _front(fit: Fit) -> Markup:
    """Worst group (across) against the objective (down), in percent; the recipe is at 0, 0."""
    line = [(100 * float(s.changes.max()), 100 * s.objective) for s in fit.front]
    line = sorted({(round(x, 6), round(y, 6)) for x, y in [(0.0, 0.0), *line]})

    def dot(name: str, x: float, y: float, color: str) -> Series:
        return Series(name, [x], [y], color)

    series = [
        Series("front, every group limited", [x for x, _ in line], [y for _, y in line], "s5"),
        dot("the run’s own mix", 0.0, 0.0, "s7"),
        dot("proposal", 100 * float(fit.proposal.changes.max()), 100 * fit.proposal.objective, "s1"),
        dot(
            "the other law’s proposal",
            100 * float(fit.cross_check.changes.max()),
            100 * fit.cross_check.objective,
            "s2",
        ),
    ]
    return line_chart(
        "What the objective wins for what the worst group loses",
        series,
        unit="change of the objective in %, predicted",
        x_label="largest rise of any group in %",
        height=260,
        keys=True,
    )


def _shares(study: Study, fit: Fit) -> Markup:
    levers, caps = study.target.levers, study.target.caps
    rows = []
    for place in np.argsort(-fit.proposal.shares):
        lever, share = levers[place], float(fit.proposal.shares[place])
        epochs = share * study.target.budget / lever.held
        low, high = (100 * float(fit.intervals[side, place]) for side in (0, 1))
        rows.append(
            Move(
                lever.name,
                100 * float(study.base[place]),
                100 * share,
                low,
                high,
                100 * float(caps[place]),
                f"· {lever.planned / lever.held:.2f} → {epochs:.2f} epochs",
            )
        )
    legend = [("s0", "more than now", ""), ("s1", "less than now", "")]
    return moves(
        "Shares of the mix",
        rows,
        unit="% of the tokens; mark: now; line: 90 % of refits; stripes: at its cap",
        legend=legend,
    )


def _held_out(fit: Fit, base: float) -> Markup:
    held = fit.held_out
    points = [
        Point(f"{name}: predicted {x:.3f}, measured {y:.3f}", float(x), float(y))
        for name, x, y in zip(held.names, held.predicted, held.measured, strict=True)
    ]
    title = f"Proxies that the law had not seen: rank correlation {held.rank:.2f}, off by {100 * held.error / base:.2f} %"
    return scatter(
        title,
        points,
        unit="measured, bits per byte; bars: twice the noise",
        x_label="predicted",
        height=280,
        noise=fit.objective_noise,
    )


def _checked(fit: Fit, found: Comparison) -> Markup:
    points = []
    for name, (predicted, measured, error) in zip(fit.trials.groups, found.groups.tolist(), strict=True):
        color = "loss" if name in found.broken else "s0"
        points.append(
            Point(
                f"{name}: predicted {percent(predicted)}, measured {percent(measured)} ± {100 * error:.1f}",
                100 * predicted,
                100 * measured,
                color,
            )
        )
    points.append(
        Point(f"objective: {percent(found.measured)}", 100 * found.predicted, 100 * found.measured, "s2")
    )
    title = (
        f"{found.mix.replace('_', '-')}: {found.word}, {percent(found.measured)} ± {100 * found.error:.1f} %"
    )
    legend = [("s0", "a group", ""), ("s2", "the objective", ""), ("loss", "a broken limit", "")]
    return scatter(
        title, points, unit="measured change in %", x_label="predicted change in %", legend=legend, height=280
    )


def _rows(study: Study, fit: Fit, verdict: Verdict | None) -> list[dict[str, Any]]:
    """One row per validation group, the objective's first."""
    rows = []
    for place in sorted(range(len(fit.weights)), key=lambda n: (-fit.weights[n], fit.trials.groups[n])):
        level = float(fit.law.parameters[place, 0])
        rows.append(
            {
                "name": fit.trials.groups[place],
                "weight": float(fit.weights[place]),
                "bits": level,
                "limit": float(fit.limits[place]) if np.isfinite(fit.limits[place]) else None,
                "held": bool(fit.limited[place]),
                "predicted": float(fit.proposal.changes[place]),
                "measured": None if verdict is None else verdict.proposal.groups[place].tolist(),
                "broken": verdict is not None and fit.trials.groups[place] in verdict.proposal.broken,
                "noise": float(fit.noise[place]) / level,
                "error": float(fit.held_out.errors[place]) / level,
                "ceiling": float(fit.ceilings[place]),
            }
        )
    return rows


def _parts(study: Study, fit: Fit) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """What counts for each group: the part of its own text, and the largest parts of others; `transfer` only."""
    if fit.law.model != "transfer":
        return []
    parts = fit.law.parts()
    rows = []
    for place, name in enumerate(fit.trials.groups):
        own = int(fit.law.own[place])
        others = [n for n in np.argsort(-parts[place]) if n != own][: _LARGEST - 1]
        rows.append(
            (
                name,
                float(parts[place, own]),
                [(study.target.levers[n].name, float(parts[place, n])) for n in others],
            )
        )
    return rows
