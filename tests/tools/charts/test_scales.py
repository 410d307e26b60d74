from __future__ import annotations

import math

import pytest

from emma.tools.charts.scales import axis, duration, number, thin


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.13, 4.2], ["0", "1", "2", "3", "4", "5"]),
        ([-0.93, 0.03], ["−1.0", "−0.8", "−0.6", "−0.4", "−0.2", "0", "0.2"]),
        ([0, 1e-3], ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"]),
        ([0, 31_000], ["0", "10k", "20k", "30k", "40k"]),
        ([0, 6.7e11], ["0", "200B", "400B", "600B", "800B"]),
    ],
)
def test_ticks_are_round_and_hold_the_values(values: list[float], labels: list[str]) -> None:
    made = axis(values, ticks=4)
    assert [made.label(tick) for tick in made.ticks] == labels
    assert made.low <= min(values) <= max(values) <= made.high


@pytest.mark.parametrize("values", [[], [3.0], [0.0], [-2.0], [1e-9, 1e-9], [math.nan, 2.0]])
def test_axis_of_almost_nothing(values: list[float]) -> None:
    made = axis(values)
    assert made.low < made.high
    assert all(made.low - 1e-12 <= tick <= made.high + 1e-12 for tick in made.ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (1500, "1500"),
        (3102.4, "3102"),
        (45_600, "45.6\u202fk"),
        (999_950.0, "1.00\u202fM"),
        (3_072_000, "3.07\u202fM"),
        (671_088_640_000, "671\u202fB"),
        (0.0123, "0.0123"),
        (4e-6, "4e−6"),
        (-0.5, "−0.500"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42, "42 s"), (725, "12 min 05 s"), (3780, "1 h 03 min"), (273_600, "3 d 04 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_thinning_keeps_mean_and_extremes() -> None:
    x = list(range(10_000))
    y = [math.sin(step / 500) for step in x]
    y[5000] = 9.0
    band = thin(x, y, most=100)
    assert len(band.x) == 100
    assert max(band.high) == 9.0
    assert min(band.low) == pytest.approx(-1, abs=1e-4)
    assert sum(band.mean) / 100 == pytest.approx(sum(y) / 10_000)
    assert not thin(x[:50], y[:50], most=100).thinned


def test_thinning_leaves_out_what_is_not_finite() -> None:
    assert thin([1, 2, 3], [1.0, math.nan, 3.0]).x == (1, 3)
