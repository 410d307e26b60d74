"""Self-contained SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from emma.tools.charts.svg import Line, Mark, ParallelAxis, log_scatter, parallel_coordinates, share_bars


def _elements(svg: str, name: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).iter() if each.tag.rpartition("}")[2] == name]


def test_a_scatter_plot_has_a_decade_for_each_power_of_ten() -> None:
    marks = {"a<b": [Mark(10, 0, "left & low"), Mark(1000, 2, "right")], "c": [Mark(100, 1, "middle")]}
    svg = log_scatter(marks, x_label="tokens", y_label="epochs", width=216, height=280)
    dots = [circle for circle in _elements(svg, "circle") if circle.get("r") == "2.5"]
    # The drawing goes from 64 to 200, and 10, 100 and 1000 are its left end, middle and right end.
    assert [float(dot.get("cx", "")) for dot in dots] == [64, 200, 132]
    low, high, middle = (float(dot.get("cy", "")) for dot in dots)
    assert low == 280 - 48 and low - middle == pytest.approx(middle - high, abs=0.2)
    titles = [title.text for title in _elements(svg, "title")]
    texts = [text.text for text in _elements(svg, "text")]
    assert titles == ["left & low", "right", "middle"]
    assert {"a<b", "c", "1e1", "1e2", "1e3", "tokens", "epochs"} <= set(texts)
    assert dots[0].get("fill") == dots[1].get("fill") != dots[2].get("fill")


def test_one_source_is_a_scatter_plot_too() -> None:
    svg = log_scatter({"a": [Mark(7, 0, "alone")]}, x_label="x", y_label="y")
    (dot,) = (circle for circle in _elements(svg, "circle") if circle.get("r") == "2.5")
    assert 64 <= float(dot.get("cx", "")) <= 944


def test_parallel_coordinates_draw_the_best_line_last() -> None:
    axes = [ParallelAxis("lr", [("1e-4", 0.0), ("1e-3", 1.0)]), ParallelAxis("loss", [("2", 0.0)])]
    svg = parallel_coordinates(axes, [Line([0.0, 1.0], "best"), Line([1.0, 0.5], "second")])
    lines = _elements(svg, "polyline")
    assert [line[0].text for line in lines] == ["second", "best"]
    assert [line.get("points") for line in lines] == ["90,40.0 810,180.0", "90,320.0 810,40.0"]
    assert lines[1].get("opacity") == "1.00" and lines[0].get("stroke") != lines[1].get("stroke")


def test_share_bars_are_as_long_as_their_shares() -> None:
    svg = share_bars({"batch": 0.5, "a<b": 0.0}, "importance")
    assert [bar.get("width") for bar in _elements(svg, "rect")] == ["225", "1"]
    assert [text.text for text in _elements(svg, "text")] == ["batch", "50%", "a<b", "0%"]
