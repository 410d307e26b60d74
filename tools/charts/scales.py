"""Axes and numbers: round ticks, short figures, binned series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "Band", "axis", "duration", "number", "thin"]

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`, with `ticks` inside it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """A value's position on the axis: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """A tick's label, with enough digits to distinguish neighbouring ticks."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        largest = max(abs(self.ticks[0]), abs(self.ticks[-1]))
        if largest >= 10_000:
            unit, suffix = next(pair for pair in _UNITS if largest >= pair[0])
            return f"{tick / unit:.{_digits(step / unit)}f}{suffix}" if tick else "0"
        if not tick:
            return "0"
        if largest < 5e-3:
            mantissa = tick / 10 ** _exponent(tick)
            return f"{mantissa:.3f}".rstrip("0").rstrip(".") + f"e{_exponent(tick)}"
        return f"{tick:.{_digits(step)}f}".replace("-", "−")


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _digits(step: float) -> int:
    """Decimals that multiples of `step` need (steps are 1, 2, or 5 times a power of ten, or 2.5)."""
    for digits in range(10):
        if math.isclose(round(step, digits), step, rel_tol=1e-6):
            return digits
    return 10


def axis(values: Sequence[float], *, zero: bool = False, ticks: int = 5, tight: bool = False) -> Axis:
    """An axis that covers all finite values.

    Args:
        values: the values to draw; an empty axis runs from 0 to 1.
        zero: include 0.
        ticks: approximate number of ticks.
        tight: end at the extremes instead of at ticks.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        pad = abs(low) * 0.05 or 0.5
        low, high = low - (0 if zero and low == 0 else pad), high + pad
    step = _nice_step((high - low) / ticks)
    if not tight:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(number * step for number in range(first, last + 1)))


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.8)


def number(value: float | None, digits: int = 3) -> str:
    """A human-readable number: `1.23M`, `45.6k`, `0.0123`, or `–` for none.

    Args:
        value: the number.
        digits: significant digits.
    """
    if value is None or not math.isfinite(value):
        return "–"
    magnitude = abs(value)
    if isinstance(value, int) and magnitude < 10_000:
        return str(value).replace("-", "−")
    for unit, suffix in _UNITS:
        if magnitude >= unit * 0.9995 and not (suffix == "k" and magnitude < 10_000):
            return _significant(value / unit, digits) + "\u202f" + suffix
    if value and magnitude < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - _exponent(rounded)) if value else 0
    return f"{value:.{decimals}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """`1 h 03 min`, `12 min 05 s`, `42 s`, `3 d 04 h`."""
    total = round(seconds)
    days, rest = divmod(total, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Band:
    """A series reduced to few enough points to draw: mean, minimum, and maximum of each bin."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    thinned: bool


def thin(x: Sequence[float], y: Sequence[float], most: int = 600) -> Band:
    """Bins neighbouring points if there are more than `most`; drops non-finite points."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) <= most:
        xs, ys = tuple(a for a, _ in points), tuple(b for _, b in points)
        return Band(xs, ys, ys, ys, False)
    bins: list[list[tuple[float, float]]] = [[] for _ in range(most)]
    for index, point in enumerate(points):
        bins[index * most // len(points)].append(point)
    return Band(
        tuple(sum(a for a, _ in part) / len(part) for part in bins),
        tuple(sum(b for _, b in part) / len(part) for part in bins),
        tuple(min(b for _, b in part) for part in bins),
        tuple(max(b for _, b in part) for part in bins),
        True,
    )
