"""Figures as SVG and PNG files, drawn by matplotlib."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emma.base.drawing import set_up_drawing
from emma.base.files import atomic_write
from emma.tools.charts.figures import Curves, Differences, Dots, Figure

__all__ = ["draw", "save"]

_INCH_A_BAR = 0.16
_FEW = 60


def save(drawing: Any, *paths: Path) -> list[Path]:
    """Writes a matplotlib figure under names that end in `.svg` or `.png`, closes it, and returns the paths."""
    import matplotlib.pyplot as plt

    for path in paths:
        options: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 160}
        with atomic_write(path) as handle:
            drawing.savefig(handle, format=path.suffix[1:], bbox_inches="tight", **options)
    plt.close(drawing)
    return list(paths)


def draw(figure: Figure, folder: Path, palette: Mapping[str, str]) -> list[Path]:
    """Draws one figure into `folder` as SVG and PNG; returns the paths.

    Args:
        figure: the data.
        folder: gets `<name of the figure>.svg` and `.png`.
        palette: colour of each class that the figure's marks name, as `#rrggbb`.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    import matplotlib.pyplot as plt

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
    return save(drawing, folder / f"{stem}.svg", folder / f"{stem}.png")


def _bars(axes: Any, figure: Differences, palette: Mapping[str, str]) -> None:
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


def _dots(axes: Any, figure: Dots, palette: Mapping[str, str]) -> None:
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


def _lines(axes: Any, figure: Curves, palette: Mapping[str, str]) -> None:
    for line in figure.series:
        axes.plot(line.x, line.y, color=palette[line.color], lw=1.5, marker="o", ms=2.5, label=line.name)
    axes.set_xlabel("step", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _legend(axes: Any, rows: Sequence[tuple[str, str]], palette: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", ls="", ms=4, color=palette[color], label=name) for color, name in rows
    ]
    if handles:
        axes.legend(handles=handles, fontsize=7, frameon=False, ncols=2)
