"""Figures as PNG and SVG, tables as LaTeX, for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.drawing import set_up_drawing
from emma.base.files import atomic_write, write_text
from emma.tools.report.benchmarks import BenchmarkView
from emma.tools.report.figures import Curves, Differences, Dots, Figure
from emma.tools.report.forgetting import ForgettingRow
from emma.tools.report.reference import ReferenceView

__all__ = ["draw", "export", "latex_table"]

_STYLE = Path(__file__).parent / "style.css"
_INCH_A_BAR = 0.16
_FEW = 60


def export(
    folder: Path,
    runs: Sequence[str],
    views: Sequence[BenchmarkView],
    forgetting: Sequence[ForgettingRow],
    figures: Sequence[Figure],
    reference: ReferenceView,
) -> list[Path]:
    """Writes every figure as `.svg` and `.png` and every table as `.tex`.

    Args:
        folder: to write to.
        runs: names, in the order of the views' cells.
        views: benchmarks.
        forgetting: rows of the forgetting panel.
        figures: the figures to draw.
        reference: published scores.

    Returns:
        The files written.

    Raises:
        UserError: matplotlib is not installed.
    """
    paths = []
    for name, text in (
        ("benchmarks", _benchmarks_table(runs, views)),
        ("categories", _categories_table(runs, views)),
        ("forgetting", _forgetting_table(runs, forgetting)),
        ("published", _published_table(reference)),
    ):
        if text:
            paths.append(folder / f"{name}.tex")
            write_text(paths[-1], text)
    for figure in figures:
        paths += draw(figure, folder)
    return paths


def colors() -> dict[str, str]:
    """Print colours of the page's classes (`s0`, `o3`, ...), from its style sheet."""
    root = _STYLE.read_text(encoding="utf-8").split("@media", 1)[0]
    return {name: value for name, value in re.findall(r"--([so]\d): (#[0-9a-f]{6})", root)}


def draw(figure: Figure, folder: Path) -> list[Path]:
    """Draws one figure into `folder` as SVG and PNG; returns their paths.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    import matplotlib.pyplot as plt

    palette = colors()
    width = 6.0
    if isinstance(figure, Differences):
        width = min(16.0, max(4.0, _INCH_A_BAR * len(figure.bars) + 1.2))
    drawing, axes = plt.subplots(figsize=(width, 4.2 if isinstance(figure, Dots) else 3.2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(figure.title, loc="left", fontsize=10)
    axes.set_ylabel(figure.unit, fontsize=8)
    axes.tick_params(labelsize=8)
    if isinstance(figure, Differences):
        _bars(axes, figure, palette)
    elif isinstance(figure, Dots):
        _dots(axes, figure, palette)
    else:
        _lines(axes, figure, palette)
    stem = re.sub(r"[^\w.-]+", "-", figure.name)
    paths = []
    for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
        paths.append(folder / f"{stem}.{ending}")
        with atomic_write(paths[-1]) as handle:
            drawing.savefig(handle, format=ending, bbox_inches="tight", **options)
    plt.close(drawing)
    return paths


def _bars(axes: Any, figure: Differences, palette: dict[str, str]) -> None:
    places = range(len(figure.bars))
    few = len(figure.bars) <= _FEW
    errors = [bar.error or 0.0 for bar in figure.bars] if few else None
    axes.bar(
        places,
        [bar.value for bar in figure.bars],
        color=[palette[bar.color] for bar in figure.bars],
        yerr=errors,
        error_kw={"lw": 0.7, "alpha": 0.6},
    )
    axes.axhline(0, color="#666b74", lw=0.8)
    axes.set_xticks(list(places) if few else [])
    if few:
        axes.set_xticklabels([bar.label for bar in figure.bars], rotation=90, fontsize=6)
    axes.margins(x=0.01)
    _legend(axes, figure.legend, palette)


def _dots(axes: Any, figure: Dots, palette: dict[str, str]) -> None:
    axes.scatter(
        [point.x for point in figure.points],
        [point.y for point in figure.points],
        s=14,
        c=[palette[point.color] for point in figure.points],
        alpha=0.85,
    )
    ends = [value for point in figure.points for value in (point.x, point.y)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], ls=":", lw=0.9, color="#666b74")
    axes.set_xlabel(figure.x_label, fontsize=8)
    axes.set_aspect("equal", adjustable="datalim")
    _legend(axes, figure.legend, palette)


def _lines(axes: Any, figure: Curves, palette: dict[str, str]) -> None:
    for line in figure.series:
        axes.plot(line.x, line.y, color=palette[line.color], lw=1.5, marker="o", ms=2.5, label=line.name)
    axes.set_xlabel("step", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _legend(axes: Any, rows: Sequence[tuple[str, str]], palette: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", ls="", ms=4, color=palette[color], label=name) for color, name in rows
    ]
    if handles:
        axes.legend(handles=handles, fontsize=7, frameon=False, ncols=2)


_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "…": r"\dots{}",
    }
)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A `tabular` with booktabs rules; cells are escaped, and the first `text_columns` are left-aligned."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(str(cell).translate(_SPECIAL) for cell in cells) + r" \\"

    columns = "l" * text_columns + "r" * (len(header) - text_columns)
    body = "\n".join(line(row) for row in rows)
    return (
        "% needs \\usepackage{booktabs}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _benchmarks_table(runs: Sequence[str], views: Sequence[BenchmarkView]) -> str:
    rows = []
    for view in views:
        base = view.base.base_average if view.base else None
        row = [view.title, view.metric.name, str(view.languages)]
        row += [view.metric.show(view.chance) if view.chance is not None else ""]
        row.append(view.metric.show(base.value if base else None))
        for cell in view.cells:
            row.append(view.metric.show(cell.average.value if cell and cell.average else None))
            changed = cell.change if cell else None
            row.append(view.metric.show(changed.average.value if changed and changed.average else None, True))
            row.append("/".join(str(n) for n in changed.counts.values()) if changed else "")
        rows.append(row)
    header = ["benchmark", "metric", "languages", "chance", "base"]
    for name in runs:
        header += [name, "change", "W/T/L"]
    return latex_table(header, rows, 2) if rows else ""


def _categories_table(runs: Sequence[str], views: Sequence[BenchmarkView]) -> str:
    rows = []
    for view in views:
        for group in view.groups:
            if group.dimension in ("overall", "category"):
                cells = [
                    text
                    for cell in group.cells
                    for text in (
                        view.metric.show(cell[0] if cell else None),
                        view.metric.show(cell[1] if cell else None, True),
                    )
                ]
                rows.append(
                    [view.title, group.group, str(group.languages), view.metric.show(group.base), *cells]
                )
    header = [
        "benchmark",
        "group",
        "languages",
        "base",
        *(text for name in runs for text in (name, "change")),
    ]
    return latex_table(header, rows, 2) if rows else ""


def _forgetting_table(runs: Sequence[str], forgetting: Sequence[ForgettingRow]) -> str:
    rows = [
        [
            row.title,
            row.group,
            row.metric.show(row.base),
            *(
                text
                for cell in row.cells
                for text in (
                    row.metric.show(cell.value if cell else None),
                    row.metric.show(cell.change if cell else None, True),
                )
            ),
        ]
        for row in forgetting
    ]
    header = ["measure", "languages", "base", *(text for name in runs for text in (name, "change"))]
    return latex_table(header, rows, 2) if rows else ""


def _published_table(reference: ReferenceView) -> str:
    rows = [
        [
            row.title,
            row.metric.name,
            str(row.languages),
            *("" if value is None else row.metric.show(value) for value in row.values),
        ]
        for row in reference.rows
    ]
    return f"% {reference.source}\n" + latex_table(
        ["benchmark", "metric", "languages", *reference.models], rows, 2
    )
