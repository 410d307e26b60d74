"""Figures as PNG and SVG, tables as LaTeX, for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from emma.base.files import write_text
from emma.tools.charts.figures import Figure
from emma.tools.charts.files import draw
from emma.tools.report.benchmarks import BenchmarkView
from emma.tools.report.forgetting import ForgettingRow
from emma.tools.report.reference import ReferenceView

__all__ = ["colors", "export", "latex_table"]

_STYLE = Path(__file__).parent / "style.css"


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
    paths, palette = [], colors()
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
        paths += draw(figure, folder, palette)
    return paths


def colors() -> dict[str, str]:
    """Print colours of the page's classes (`s0`, `o3`, ...), from its style sheet."""
    root = _STYLE.read_text(encoding="utf-8").split("@media", 1)[0]
    return {name: value for name, value in re.findall(r"--([so]\d): (#[0-9a-f]{6})", root)}


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
