"""Bar charts over many languages as SVG files, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emma.base.drawing import set_up_drawing
from emma.tools.charts.files import save

__all__ = ["MANY", "grouped_bars", "noted_bars", "ranked_bars"]

MANY = 30
"""Maximum number of bars that are each named under the axis."""

_COLOURS = ("#08306b", "#2166ac", "#4393c3", "#92c5de", "#f4a582", "#d6604d", "#b2182b")


def ranked_bars(
    path: Path,
    names: Sequence[str],
    values: Sequence[float],
    groups: Mapping[str, Sequence[int]],
    *,
    x_label: str,
    y_label: str,
    legend: str,
) -> Path:
    """Vertical bars on a logarithmic axis, coloured by group.

    Args:
        path: file to write, `.svg`.
        names: names of the bars, from left to right; shown if there are at most `MANY`.
        values: heights of the bars, all above 0.
        groups: legend label → indices of the group's bars.
        x_label: label under the bars.
        y_label: unit of the values.
        legend: title of the legend.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(9, 4.5))
    for (label, places), colour in zip(groups.items(), _COLOURS, strict=False):
        if places:
            axes.bar(places, [values[place] for place in places], width=1.0, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(title=legend, fontsize="small", title_fontsize="small")
    if len(names) <= MANY:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    return save(drawing, path)[0]


def grouped_bars(
    path: Path, names: Sequence[str], groups: Mapping[str, Sequence[float]], *, x_label: str
) -> Path:
    """Grouped horizontal bars from the bottom up: at each name, one bar per group.

    Args:
        path: file to write, `.svg`.
        names: labels beside the axis.
        groups: legend label → one value per name.
        x_label: unit of the values.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * max(len(names), 1)))
    height = 0.8 / max(len(groups), 1)
    for index, (label, values) in enumerate(groups.items()):
        places = [place + index * height - 0.4 for place in range(len(names))]
        axes.barh(places, values, height=height, align="edge", label=label)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_xlabel(x_label)
    if names:
        axes.legend(fontsize="small")
    return save(drawing, path)[0]


def noted_bars(path: Path, bars: Sequence[tuple[str, float, str]], *, x_label: str) -> Path:
    """Horizontal bars of percentages on a logarithmic axis, from the bottom up, each followed by a note.

    Args:
        path: file to write, `.svg`.
        bars: name, percent, note.
        x_label: unit of the values.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * max(len(bars), 1)))
    axes.barh([name for name, _, _ in bars], [percent for _, percent, _ in bars], color=_COLOURS[1])
    for place, (_, percent, note) in enumerate(bars):
        axes.text(percent, place, f" {note}", va="center", fontsize="small")
    axes.set_xscale("log")
    axes.set_xlim(right=400)  # room for the note after a bar of 100 %
    axes.tick_params(axis="y", labelsize="small")
    axes.set_xlabel(x_label)
    return save(drawing, path)[0]
