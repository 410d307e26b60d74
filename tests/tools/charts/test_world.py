"""The map: every point of the earth in its place, and areas that can be compared."""

from __future__ import annotations

import math
import re

import pytest

from emma.tools.charts.world import HEIGHT, WIDTH, outlines, project


def test_the_middle_and_the_edges() -> None:
    assert project(0, 0)[0] == pytest.approx(WIDTH / 2)
    assert project(-180, 0)[0] == pytest.approx(0) and project(180, 0)[0] == pytest.approx(WIDTH)
    west, east = project(-70, 40), project(70, 40)
    assert west[0] + east[0] == pytest.approx(WIDTH) and west[1] == east[1]
    assert project(10, 50)[1] < project(10, -50)[1], "north is up"
    for longitude in range(-180, 181, 20):
        for latitude in range(-56, 85, 10):
            x, y = project(longitude, latitude)
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


@pytest.mark.parametrize("latitude", [-50, -20, 30, 60, 75])
def test_areas_keep_their_ratios(latitude: int) -> None:
    def drawn(south: float) -> float:
        corners = [(0, south), (1, south), (1, south + 1), (0, south + 1)]
        points = [project(*corner) for corner in corners]
        turned = zip(points, points[1:] + points[:1], strict=True)
        return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in turned)) / 2

    def real(south: float) -> float:
        return math.sin(math.radians(south + 1)) - math.sin(math.radians(south))

    assert drawn(latitude) / drawn(0) == pytest.approx(real(latitude) / real(0), rel=1e-3)


def test_an_outline_is_the_projected_ring() -> None:
    ring = [(0.0, 0.0), (20.0, 0.0), (20.0, 30.0), (0.0, 0.0)]
    path = outlines([ring])
    start, rest = re.fullmatch(r"M(-?\d+ -?\d+)l(.*)z", path.replace("-", " -").replace("l ", "l")).groups()  # type: ignore[union-attr]
    at = [int(v) for v in start.split()]
    numbers = [int(v) for v in rest.split()]
    for point, dx, dy in zip(ring[1:], numbers[::2], numbers[1::2], strict=True):
        at = [at[0] + dx, at[1] + dy]
        assert at == [round(10 * v) for v in project(*point)]
