"""A map of the world in the Equal Earth projection (Šavrič, Patterson and Jenny 2018), which keeps areas comparable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["HEIGHT", "WIDTH", "outlines", "project"]

WIDTH, HEIGHT = 1000, 450
"""Size of the map in its own units: all longitudes, latitudes from 58° south to 84° north."""

_A = (1.340264, -0.081106, 0.000893, 0.003796)
_ROOT = math.sqrt(3) / 2


def _plane(longitude: float, latitude: float) -> tuple[float, float]:
    t = math.asin(_ROOT * math.sin(math.radians(latitude)))
    a1, a2, a3, a4 = _A
    slope = 9 * a4 * t**8 + 7 * a3 * t**6 + 3 * a2 * t**2 + a1
    x = math.radians(longitude) * math.cos(t) / (_ROOT * slope)
    return x, a4 * t**9 + a3 * t**7 + a2 * t**3 + a1 * t


_HALF = _plane(180, 0)[0]
_TOP = _plane(0, 84)[1]
_SCALE = WIDTH / (2 * _HALF)


def project(longitude: float, latitude: float) -> tuple[float, float]:
    """Place on the map of a point given in degrees; y grows downwards."""
    x, y = _plane(longitude, latitude)
    return (x + _HALF) * _SCALE, (_TOP - y) * _SCALE


def outlines(rings: Iterable[Sequence[tuple[float, float]]]) -> str:
    """An SVG path of closed rings of (longitude, latitude), in whole tenths of a unit: scale it by 0.1."""
    parts = []
    for ring in rings:
        points = [tuple(round(10 * v) for v in project(*point)) for point in ring]
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(points) if a != b]
        parts.append(f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x} {y}" for x, y in steps) + "z")
    return "".join(parts).replace(" -", "-")
