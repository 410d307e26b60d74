"""Charts as inline SVG under HTML labels.

The drawing stretches with the page (`preserveAspectRatio="none"`, strokes that don't scale), and every label
is fixed-size HTML over it, so that a chart reads equally well on a phone and on a wide screen, in light and
dark mode, without a script. Heights are in CSS pixels; colours are classes in the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from emma.tools.charts.scales import Axis, axis, number, thin

__all__ = [
    "Move",
    "Point",
    "Segment",
    "Series",
    "difference_bars",
    "line_chart",
    "moves",
    "scatter",
    "share_bar",
]

_SIZE = 1000
"""Width and height of the drawing in its own coordinates."""


@dataclass(frozen=True)
class Series:
    """A line; `color` is a style sheet class, e.g. `s0`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = "s0"


@dataclass(frozen=True)
class Point:
    """A dot in a scatter plot; `title` appears on hover."""

    title: str
    x: float
    y: float
    color: str = "s0"


@dataclass(frozen=True)
class Segment:
    """One part of a share bar."""

    name: str
    value: float
    color: str


@dataclass(frozen=True)
class Move:
    """A value that changes, in a row of `moves`.

    Attributes:
        name: of the row.
        before, after: its values, at least 0.
        low, high: an interval of the value after; equal if there is none.
        limit: the most it may be; None without a limit.
        note: shown after the values.
    """

    name: str
    before: float
    after: float
    low: float
    high: float
    limit: float | None
    note: str


def _place(share: float) -> str:
    return f"{share * 100:.2f}%"


def _xy(x_axis: Axis, y_axis: Axis, x: float, y: float) -> str:
    return f"{x_axis.share(x) * _SIZE:.1f} {(1 - y_axis.share(y)) * _SIZE:.1f}"


def _figure(
    title: str,
    unit: str,
    body: Markup,
    x_axis: Axis | None,
    y_axis: Axis,
    height: int,
    x_label: str,
    legend: Markup,
) -> Markup:
    """Frame of a plot: caption, y labels and grid lines, drawing, x labels, legend."""
    grid = Markup("").join(
        Markup('<line class="{}" x1="0" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            "zero" if tick == 0 else "grid", _SIZE, *([(1 - y_axis.share(tick)) * _SIZE] * 2)
        )
        for tick in y_axis.ticks
    )
    y_labels = Markup("").join(
        Markup('<span style="bottom:{}">{}</span>').format(_place(y_axis.share(tick)), y_axis.label(tick))
        for tick in y_axis.ticks
    )
    x_labels = Markup("")
    if x_axis is not None:
        x_labels = Markup("").join(
            Markup('<span style="left:{}">{}</span>').format(_place(x_axis.share(tick)), x_axis.label(tick))
            for tick in x_axis.ticks
        )
    return Markup(
        '<figure class="chart"><figcaption>{title}{unit}</figcaption>'
        '<div class="plot" style="height:{height}px"><div class="y">{y}</div>'
        '<svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" role="img" aria-label="{title}">'
        "{grid}{body}</svg></div>"
        '<div class="x">{x}</div>{x_label}{legend}</figure>'
    ).format(
        title=title,
        unit=Markup(' <span class="unit">{}</span>').format(unit) if unit else "",
        height=height,
        y=y_labels,
        size=_SIZE,
        grid=grid,
        body=body,
        x=x_labels,
        x_label=Markup('<div class="x-label">{}</div>').format(x_label) if x_label else "",
        legend=legend,
    )


def _legend(items: Sequence[tuple[str, str, str]]) -> Markup:
    """Legend from (colour, name, note) rows."""
    rows = Markup("").join(
        Markup('<li><i class="{}"></i>{}{}</li>').format(
            color, name, Markup(' <span class="note">{}</span>').format(note) if note else ""
        )
        for color, name, note in items
    )
    return Markup('<ul class="legend">{}</ul>').format(rows)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    x_label: str = "step",
    height: int = 200,
    zero: bool = False,
    digits: int = 3,
    keys: bool | None = None,
) -> Markup:
    """Lines over steps. Long series are binned and drawn as their mean over a band from minimum to maximum.

    Args:
        title: caption.
        series: one or more lines.
        unit: of the y axis, shown after the title.
        x_label: shown under the x axis.
        height: of the drawing in CSS pixels.
        zero: start the y axis at 0.
        digits: significant digits of the values in the legend.
        keys: show a legend with each line's first and last value; by default, only for several lines.
    """
    bands = [thin(line.x, line.y) for line in series]
    ends = [x for line in series for x in (*line.x[:1], *line.x[-1:])]
    # An axis of steps starts at 0 if the first step is close to it.
    x_axis = axis(ends, zero=bool(ends) and 0 <= min(ends) <= 0.1 * max(ends), tight=True, ticks=5)
    # Bands reach to the extremes of their bins; if one spike would flatten the rest, the means set the axis.
    y_axis = axis([y for band in bands for y in band.mean], zero=zero, ticks=4)
    parts, legend = [], []
    for line, band in zip(series, bands, strict=True):
        if band.thinned:
            top = [
                _xy(x_axis, y_axis, x, min(y, y_axis.high)) for x, y in zip(band.x, band.high, strict=True)
            ]
            low = [_xy(x_axis, y_axis, x, max(y, y_axis.low)) for x, y in zip(band.x, band.low, strict=True)]
            parts.append(
                Markup('<path class="band {}" d="M{}Z"/>').format(
                    line.color, "L".join([*top, *reversed(low)])
                )
            )
        points = [_xy(x_axis, y_axis, x, y) for x, y in zip(band.x, band.mean, strict=True)]
        if len(points) == 1:
            parts.append(Markup('<path class="dot {}" d="M{}h0"/>').format(line.color, points[0]))
        elif points:
            parts.append(Markup('<path class="line {}" d="M{}"/>').format(line.color, "L".join(points)))
        if band.mean:
            first, last = number(band.mean[0], digits), number(band.mean[-1], digits)
            note = first if len(band.mean) == 1 else f"{first} → {last}"
            legend.append((line.color, line.name, note))
    shown = _legend(legend) if (len(series) > 1 if keys is None else keys) else Markup("")
    return _figure(title, unit, Markup("").join(parts), x_axis, y_axis, height, x_label, shown)


def difference_bars(
    title: str,
    rows: Sequence[tuple[str, float, float | None, str]],
    *,
    unit: str,
    height: int = 220,
    legend: Sequence[tuple[str, str, str]] = (),
) -> Markup:
    """Sorted vertical bars from zero, one per language, with error bars where known.

    Args:
        title: caption.
        rows: (title shown on hover, difference, error, colour), in drawing order.
        unit: of the y axis.
        height: of the drawing in CSS pixels.
        legend: (colour, name, note) rows.
    """
    ends = [value + side * (error or 0.0) for _, value, error, _ in rows for side in (-1, 1)]
    y_axis = axis(ends, zero=True, ticks=4)
    width = _SIZE / max(1, len(rows))
    parts = []
    for index, (label, value, error, color) in enumerate(rows):
        zero, top = (1 - y_axis.share(0)) * _SIZE, (1 - y_axis.share(value)) * _SIZE
        bar = Markup(
            '<rect class="{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}">{}</rect>'
        ).format(
            color,
            index * width + width * 0.12,
            min(zero, top),
            width * 0.76,
            max(abs(zero - top), 1.0),
            Markup("<title>{}</title>").format(label),
        )
        parts.append(bar)
        if error:
            low, high = max(value - error, y_axis.low), min(value + error, y_axis.high)
            parts.append(
                Markup('<path class="error" d="M{}L{}"/>').format(
                    f"{(index + 0.5) * width:.2f} {(1 - y_axis.share(low)) * _SIZE:.1f}",
                    f"{(index + 0.5) * width:.2f} {(1 - y_axis.share(high)) * _SIZE:.1f}",
                )
            )
    keys = _legend(legend) if legend else Markup("")
    return _figure(title, unit, Markup("").join(parts), None, y_axis, height, "", keys)


def scatter(
    title: str,
    points: Sequence[Point],
    *,
    unit: str,
    x_label: str,
    legend: Sequence[tuple[str, str, str]] = (),
    height: int = 320,
    noise: float = 0.0,
) -> Markup:
    """Dots over two equal axes, with the diagonal on which both values are equal.

    Args:
        title: caption.
        points: the dots.
        unit: of the y axis.
        x_label: shown under the x axis.
        legend: (colour, name, note) rows.
        height: of the drawing in CSS pixels.
        noise: standard deviation of the y values, drawn as a bar of two of them, up and down, at each dot.
    """
    both = axis([value for point in points for value in (point.x, point.y)], ticks=5)
    diagonal = Markup('<path class="diagonal" d="M0 {size}L{size} 0"/>').format(size=_SIZE)
    dots = Markup("").join(
        Markup('<path class="dot {}" d="M{}h0"><title>{}</title></path>').format(
            point.color, _xy(both, both, point.x, point.y), point.title
        )
        for point in points
    )
    bars = Markup("").join(
        Markup('<path class="error" d="M{}L{}"/>').format(
            *(_xy(both, both, point.x, point.y + side * 2 * noise) for side in (-1, 1))
        )
        for point in points
        if noise
    )
    keys = _legend(legend) if legend else Markup("")
    return _figure(title, unit, diagonal + bars + dots, both, both, height, x_label, keys)


def share_bar(segments: Sequence[Segment], label: str, *, counts: bool = False) -> Markup:
    """One horizontal bar divided into shares, with a legend that names each.

    Args:
        segments: parts with positive values.
        label: for screen readers.
        counts: show the values themselves instead of percentages.
    """

    def note(segment: Segment) -> str:
        return f"{segment.value:.0f}" if counts else f"{segment.value / total:.1%}"

    total = sum(segment.value for segment in segments)
    parts = Markup("").join(
        Markup('<i class="{}" style="flex-grow:{:.5f}" title="{}"></i>').format(
            segment.color, segment.value / total, f"{segment.name} {note(segment)}"
        )
        for segment in segments
    )
    keys = _legend([(s.color, s.name, note(s)) for s in segments])
    return Markup('<div class="share" role="img" aria-label="{}">{}</div>{}').format(
        escape(label), parts, keys
    )


def moves(
    title: str, rows: Sequence[Move], *, unit: str = "", legend: Sequence[tuple[str, str, str]] = ()
) -> Markup:
    """Horizontal bars of values after a change, each with a mark at the value before, a line over its interval, and, where
    it reaches its limit, stripes.

    Args:
        title: caption.
        rows: from the top down.
        unit: of the values, shown after the title.
        legend: (colour, name, note) rows.
    """
    largest = max((max(row.before, row.after, row.high) for row in rows), default=1.0) or 1.0
    parts = Markup("").join(
        Markup(
            '<div class="move"><span>{name}</span><i class="track"><b class="{tone}{full}" style="width:{width}"></b>'
            '{interval}<u style="left:{mark}"></u></i><span class="note">{before} → {after} {note}</span></div>'
        ).format(
            name=row.name,
            tone="s0" if row.after >= row.before else "s1",
            full=" full" if row.limit is not None and row.after >= 0.995 * row.limit else "",
            width=_place(row.after / largest),
            interval=Markup('<em style="left:{};width:{}"></em>').format(
                _place(row.low / largest), _place((row.high - row.low) / largest)
            )
            if row.high > row.low
            else "",
            mark=_place(row.before / largest),
            before=number(row.before),
            after=number(row.after),
            note=row.note,
        )
        for row in rows
    )
    return Markup(
        '<figure class="chart"><figcaption>{}{}</figcaption><div class="moves">{}</div>{}</figure>'
    ).format(
        title,
        Markup(' <span class="unit">{}</span>').format(unit) if unit else "",
        parts,
        _legend(legend) if legend else "",
    )
