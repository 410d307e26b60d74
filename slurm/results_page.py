"""The results of a sweep as files: tables, and one page with its trials and the importance of its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from emma.base.files import atomic_write
from emma.recipes.schema.sweep import Sweep
from emma.slurm.results import Result, best, columns, importance, results
from emma.slurm.sweep import SweepFolder
from emma.tools.charts.svg import Line, ParallelAxis, parallel_coordinates, share_bars

__all__ = ["write_results"]

_MOST_SETTINGS = 12
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 960px; padding: 0 1rem; color: #222; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #444; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
tr.best td { font-weight: 600; background: #eef6ee; } .scroll { overflow-x: auto; }
"""


def write_results(folder: SweepFolder) -> list[Result]:
    """Writes `results.parquet`, `results.csv` and `results.html` into the sweep's folder."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    found = results(folder)
    table = pa.Table.from_pylist([columns(folder.sweep, result) for result in found])
    with atomic_write(folder.path / "results.parquet") as handle:
        pa.parquet.write_table(table, handle)
    with atomic_write(folder.path / "results.csv") as handle:
        pa.csv.write_csv(table, handle)
    with atomic_write(folder.path / "results.html", "w") as handle:
        handle.write(_page(folder.sweep, found))
    return found


def _page(sweep: Sweep, found: Sequence[Result]) -> str:
    """A self-contained HTML page of a sweep's results."""
    winner = best(sweep, found)
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
<h2>Trials</h2>{_trials(sweep, found)}
<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>
<h2>Importance</h2><p>Share of the objective's variance between the values of a parameter.</p>
{share_bars(importance(sweep, found), "importance")}
</body></html>
"""


def _trials(sweep: Sweep, found: Sequence[Result]) -> str:
    """An axis for each parameter and one for the objective; a line for each finished trial, the best first."""
    done = [r for r in found if r.objective is not None and r.trial.parameters and r.trial.done]
    if not done:
        return "<p>No trial has a result yet.</p>"
    # An axis of many names says nothing.
    many = [
        key for key, each in sweep.parameters.items() if each.settings and len(each.settings) > _MOST_SETTINGS
    ]
    keys = [*(key for key in sweep.parameters if key not in many), "objective"]
    if len(keys) == 1:
        return ""
    places = {key: _places(sweep, key, done) for key in keys}
    better = sorted(done, key=lambda r: (r.objective or 0.0) * (1 if sweep.direction == "minimize" else -1))
    return parallel_coordinates(
        [ParallelAxis(key.split(".")[-1], places[key][1]) for key in keys],
        [
            Line(
                [places[key][0][id(result)] for key in keys],
                f"trial {result.trial.number}: {result.objective:.5f}",
            )
            for result in better
        ],
    )


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
