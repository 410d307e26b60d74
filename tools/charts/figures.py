"""Figures as data, so that the page and the exported files draw the same figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from emma.tools.charts.inline import Point, Series, difference_bars, line_chart, scatter

__all__ = ["Bar", "Curves", "Differences", "Dots", "Figure", "markup"]


@dataclass(frozen=True)
class Bar:
    """A language's difference; `tip` appears on hover, `color` is a style sheet class."""

    label: str
    value: float
    error: float | None
    color: str
    tip: str


@dataclass(frozen=True)
class Differences:
    """Sorted bars from zero, one per language. `name` is that of the exported file."""

    name: str
    title: str
    unit: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Dots:
    """Dots over two equal axes, one per language."""

    name: str
    title: str
    unit: str
    x_label: str
    points: tuple[Point, ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Curves:
    """Lines over training steps."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...] = field(default_factory=tuple)


Figure = Differences | Dots | Curves

_MANY = 80


def markup(figure: Figure) -> Markup:
    """A figure as HTML for the page."""
    if isinstance(figure, Curves):
        return line_chart(figure.title, figure.series, unit=figure.unit, height=190, keys=True)
    legend = [(color, name, "") for color, name in figure.legend]
    if isinstance(figure, Dots):
        return scatter(
            figure.title, figure.points, unit=figure.unit, x_label=figure.x_label, legend=legend, height=300
        )
    few = len(figure.bars) <= _MANY
    rows = [(bar.tip, bar.value, bar.error if few else None, bar.color) for bar in figure.bars]
    return difference_bars(figure.title, rows, unit=figure.unit, height=240, legend=legend)
