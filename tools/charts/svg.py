"""Charts as self-contained SVG: colours and labels are in the drawing; no style sheet or package is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "marked_bars",
    "Line",
    "Mark",
    "Panel",
    "ParallelAxis",
    "log_scatter",
    "panels",
    "parallel_coordinates",
    "share_bars",
]

_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#5b5b5b", "#0f8b8d", "#a23b72")
_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 360, 90, 40


@dataclass(frozen=True)
class Mark:
    """A dot of a scatter plot; `title` appears on hover."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class ParallelAxis:
    """One of several vertical axes; `ticks` are labels and their positions, from 0 (bottom) to 1 (top)."""

    label: str
    ticks: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Line:
    """A line across parallel axes: its position on each, from 0 to 1, and the text that appears on hover."""

    places: Sequence[float]
    title: str


@dataclass(frozen=True)
class Panel:
    """A small plot of values in order: their mean as a line, and the range from `low` to `high` as a band."""

    title: str
    values: Sequence[float]
    mean: float
    low: float
    high: float


def panels(items: Sequence[Panel], *, columns: int = 3) -> str:
    """Small plots side by side, each with a y axis of its own.

    Args:
        items: the plots, row by row.
        columns: plots in a row.
    """
    width, height, left, top, bottom = 320, 150, 56, 26, 12
    parts = []
    for place, panel in enumerate(items):
        x0, y0 = place % columns * width, place // columns * height
        # A band that is far wider than the values would flatten them.
        spread = max(max(panel.values) - min(panel.values), abs(panel.mean) * 1e-6, 1e-12)
        low = min(*panel.values, max(panel.low, panel.mean - 2 * spread))
        high = max(*panel.values, min(panel.high, panel.mean + 2 * spread))
        span = high - low or 1.0

        def y(value: float, low: float = low, span: float = span, y0: int = y0) -> float:
            share = min(max((value - low) / span, 0.0), 1.0)
            return y0 + height - bottom - share * (height - top - bottom)

        step = (width - left - 12) / max(1, len(panel.values) - 1)
        points = " ".join(
            f"{x0 + left + step * i:.1f},{y(value):.1f}" for i, value in enumerate(panel.values)
        )
        right = x0 + width - 12
        parts += [
            f'<text x="{x0 + left}" y="{y0 + 16}">{escape(panel.title)}</text>',
            f'<rect x="{x0 + left}" y="{y(panel.high):.1f}" width="{right - x0 - left}" '
            f'height="{max(0.5, y(panel.low) - y(panel.high)):.1f}" fill="#dde7f0"/>',
            f'<line x1="{x0 + left}" x2="{right}" y1="{y(panel.mean):.1f}" y2="{y(panel.mean):.1f}" stroke="#999"/>',
            f'<polyline points="{points}" fill="none" stroke="#1b6ca8" stroke-width="1.5"/>',
            *(
                f'<text x="{x0 + left - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
                for value in (low, high)
            ),
        ]
    rows = -(-len(items) // columns)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width} {rows * height}" role="img" '
        f'aria-label="values along a run" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def log_scatter(
    groups: Mapping[str, Sequence[Mark]], *, x_label: str, y_label: str, width: int = 960, height: int = 480
) -> str:
    """A scatter plot with a logarithmic x axis and a y axis from 0; each group has a colour and a legend entry.

    Args:
        groups: marks by group, at least one in total; x is above 0, y at least 0.
        x_label: label under the drawing.
        y_label: label beside it.
        width: of the view box.
        height: of the view box.
    """
    marks = [mark for group in groups.values() for mark in group]
    left, right, top, bottom = 64, 16, 32, 48
    low = math.floor(min(math.log10(mark.x) for mark in marks))
    high = max(math.ceil(max(math.log10(mark.x) for mark in marks)), low + 1)
    tallest = max(max(mark.y for mark in marks) * 1.05, 1e-3)

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - value / tallest * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">{escape(y_label)}</text>',
    ]
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - bottom + 16}" text-anchor="middle">1e{power}</text>')
    for step in range(5):
        value = tallest * step / 4
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for number, (name, group) in enumerate(groups.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<circle cx="{left + 8 + 150 * number}" cy="16" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 16 + 150 * number}" y="20">{escape(name)}</text>')
        parts += [
            f'<circle cx="{x(mark.x):.1f}" cy="{y(mark.y):.1f}" r="2.5" fill="{colour}" fill-opacity="0.6">'
            f"<title>{escape(mark.title)}</title></circle>"
            for mark in group
        ]
    return "\n".join([*parts, "</svg>\n"])


def parallel_coordinates(axes: Sequence[ParallelAxis], lines: Sequence[Line]) -> str:
    """Vertical axes side by side, with a line across all of them for each item.

    Args:
        axes: from left to right.
        lines: best first; the first is red and on top, the others grow paler in order.
    """
    gap = (_WIDTH - 2 * _LEFT) / max(1, len(axes) - 1)
    bottom = _HEIGHT - _TOP
    parts = []
    for index, axis in enumerate(axes):
        x = _LEFT + gap * index
        parts.append(f'<line x1="{x:.0f}" y1="{_TOP}" x2="{x:.0f}" y2="{bottom}" stroke="#999"/>')
        parts.append(f'<text x="{x:.0f}" y="{_TOP - 16}" text-anchor="middle">{escape(axis.label)}</text>')
        parts += [
            f'<text x="{x + 6:.0f}" y="{bottom - place * (bottom - _TOP) + 4:.0f}">{escape(label)}</text>'
            for label, place in axis.ticks
        ]
    for rank, line in reversed(list(enumerate(lines))):
        points = " ".join(
            f"{_LEFT + gap * index:.0f},{bottom - place * (bottom - _TOP):.1f}"
            for index, place in enumerate(line.places)
        )
        opacity = 1 - 0.8 * rank / max(1, len(lines) - 1)
        colour, width = ("#c33", 2.5) if rank == 0 else ("#257", 1.5)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'opacity="{opacity:.2f}"><title>{escape(line.title)}</title></polyline>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="parallel coordinates">{"".join(parts)}</svg>'


def share_bars(shares: Mapping[str, float], label: str) -> str:
    """Horizontal bars with percentages, one per share, from the top down.

    Args:
        shares: name → share, from 0 to 1.
        label: for screen readers.
    """
    bars = "".join(
        f'<text x="{_LEFT + 160}" y="{26 + 28 * i}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_LEFT + 170}" y="{12 + 28 * i}" width="{max(1, 450 * share):.0f}" height="18" fill="#4a7"/>'
        f'<text x="{_LEFT + 176 + 450 * share:.0f}" y="{26 + 28 * i}">{share:.0%}</text>'
        for i, (name, share) in enumerate(shares.items())
    )
    return f'<svg viewBox="0 0 {_WIDTH} {28 * len(shares) + 16}" role="img" aria-label="{escape(label)}">{bars}</svg>'


def marked_bars(rows: Sequence[tuple[str, float, float | None]], label: str) -> str:
    """Horizontal bars with their values, from the top down, each with a mark at another value.

    Args:
        rows: name, value (at least 0), and the value to mark or None.
        label: for screen readers.
    """
    largest = max((max(value, mark or 0.0) for _, value, mark in rows), default=1.0) or 1.0
    parts = []
    for place, (name, value, mark) in enumerate(rows):
        top, width = 12 + 22 * place, 450 * value / largest
        parts.append(
            f'<text x="{_LEFT + 160}" y="{top + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LEFT + 170}" y="{top}" width="{max(1, width):.0f}" height="15" fill="#2f7f5f"/>'
            f'<text x="{_LEFT + 176 + width:.0f}" y="{top + 12}">{value:.2f}</text>'
        )
        if mark is not None:
            at = _LEFT + 170 + 450 * mark / largest
            parts.append(f'<path d="M{at:.1f} {top - 2}v19" stroke="#222" stroke-width="2"/>')
    height = 22 * len(rows) + 16
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
