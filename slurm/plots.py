"""One page with a sweep's plots as inline SVG: parallel coordinates and the importance of the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from emma.recipes.schema.sweep import Sweep

if TYPE_CHECKING:
    from emma.slurm.results import Result

__all__ = ["page", "parallel_coordinates"]

_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 360, 90, 40

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 960px; padding: 0 1rem; color: #222; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #444; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
tr.best td { font-weight: 600; background: #eef6ee; } .scroll { overflow-x: auto; }
"""


def page(sweep: Sweep, found: Sequence[Result]) -> str:
    """A self-contained HTML page of a sweep's results."""
    from emma.slurm.results import best, importance

    winner = best(sweep, found)
    shares = importance(sweep, found)
    bars = "".join(
        f'<text x="{_LEFT + 160}" y="{26 + 28 * i}" text-anchor="end">{escape(key)}</text>'
        f'<rect x="{_LEFT + 170}" y="{12 + 28 * i}" width="{max(1, 450 * share):.0f}" height="18" fill="#4a7"/>'
        f'<text x="{_LEFT + 176 + 450 * share:.0f}" y="{26 + 28 * i}">{share:.0%}</text>'
        for i, (key, share) in enumerate(shares.items())
    )
    header = "".join(
        f"<th>{escape(name)}</th>" for name in ("trial", "state", *sweep.parameters, "objective")
    )
    rows = []
    for result in found:
        parameters = result.trial.parameters or {}
        values = [parameters.get(key, "–") for key in sweep.parameters]
        objective = "–" if result.objective is None else f"{result.objective:.5f}"
        cells = "".join(
            f"<td>{escape(str(v))}</td>"
            for v in (result.trial.number, result.trial.state, *values, objective)
        )
        rows.append(f"<tr{' class="best"' if winner is not None and result is winner else ''}>{cells}</tr>")
    chosen = "no finished trial meets the constraints"
    if winner is not None:
        settings = ", ".join(f"{key} = {value}" for key, value in (winner.trial.parameters or {}).items())
        chosen = f"best: trial {winner.trial.number} with {winner.objective:.5f} ({settings})"
    what = sweep.objective.metric + (
        f" of {', '.join(sweep.objective.groups)}" if sweep.objective.metric == "validation" else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(sweep.name)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(sweep.name)}</h1><p>{escape(sweep.description)}</p>
<p>Objective: {escape(what)}, {sweep.direction}d. {escape(chosen)}</p>
<h2>Trials</h2>{parallel_coordinates(sweep, found)}
<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>
<h2>Importance</h2><p>Share of the objective's variance that a parameter's values explain.</p>
<svg viewBox="0 0 {_WIDTH} {28 * len(shares) + 16}" role="img" aria-label="importance">{bars}</svg>
</body></html>
"""


def parallel_coordinates(sweep: Sweep, found: Sequence[Result]) -> str:
    """SVG with one axis per parameter and one for the objective; one line per finished trial, darker if
    better."""
    done = [r for r in found if r.objective is not None and r.trial.parameters and r.trial.done]
    keys = [*sweep.parameters, "objective"]
    if not done:
        return "<p>No trial has a result yet.</p>"
    gap = (_WIDTH - 2 * _LEFT) / max(1, len(keys) - 1)
    bottom = _HEIGHT - _TOP
    places = {key: _places(sweep, key, done) for key in keys}
    parts = []
    for index, key in enumerate(keys):
        x = _LEFT + gap * index
        parts.append(f'<line x1="{x:.0f}" y1="{_TOP}" x2="{x:.0f}" y2="{bottom}" stroke="#999"/>')
        parts.append(
            f'<text x="{x:.0f}" y="{_TOP - 16}" text-anchor="middle">{escape(key.split(".")[-1])}</text>'
        )
        for label, place in places[key][1]:
            parts.append(
                f'<text x="{x + 6:.0f}" y="{bottom - place * (bottom - _TOP) + 4:.0f}">{escape(label)}</text>'
            )
    better = sorted(done, key=lambda r: (r.objective or 0.0) * (1 if sweep.direction == "minimize" else -1))
    for rank, result in reversed(list(enumerate(better))):
        points = [
            f"{_LEFT + gap * index:.0f},{bottom - places[key][0][id(result)] * (bottom - _TOP):.1f}"
            for index, key in enumerate(keys)
        ]
        shade = 1 - 0.8 * rank / max(1, len(better) - 1)
        color, width = ("#c33", 2.5) if rank == 0 else ("#257", 1.5)
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="{width}" '
            f'opacity="{shade:.2f}"><title>trial {result.trial.number}: {result.objective:.5f}</title></polyline>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="parallel coordinates">{"".join(parts)}</svg>'


def _places(
    sweep: Sweep, key: str, done: Sequence[Result]
) -> tuple[dict[int, float], list[tuple[str, float]]]:
    """Position of each trial on an axis, from 0 to 1, and the axis labels with their positions."""
    if key == "objective":
        values = {id(r): float(r.objective or 0.0) for r in done}
        return _scaled(values, log=False)
    own = {id(r): (r.trial.parameters or {})[key] for r in done}
    choices = sweep.parameters[key].choices
    if choices is None:
        return _scaled({name: float(value) for name, value in own.items()}, log=sweep.parameters[key].log)
    span = max(1, len(choices) - 1)
    spots = {str(choice): index / span for index, choice in enumerate(choices)}
    return {name: spots[str(value)] for name, value in own.items()}, list(spots.items())


def _scaled(values: dict[int, float], *, log: bool) -> tuple[dict[int, float], list[tuple[str, float]]]:
    moved = {name: math.log(value) if log else value for name, value in values.items()}
    low, high = min(moved.values()), max(moved.values())
    width = (high - low) or 1.0
    labels = [(f"{min(values.values()):.4g}", 0.0), (f"{max(values.values()):.4g}", 1.0)]
    return {name: (value - low) / width for name, value in moved.items()}, labels
