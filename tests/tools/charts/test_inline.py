from __future__ import annotations

from xml.etree import ElementTree

import pytest

from emma.tools.charts.inline import Point, Segment, Series, difference_bars, line_chart, scatter, share_bar


def parse(markup: str) -> ElementTree.Element:
    """A chart is well-formed markup, whatever texts it contains."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


def path(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    found = next(e for e in root.iter("path") if e.attrib["class"].startswith(kind))
    return [tuple(map(float, point.split())) for point in found.attrib["d"][1:].split("L")]  # type: ignore[misc]


def test_line_reaches_over_the_whole_width_and_falls_with_the_values() -> None:
    points = path(parse(line_chart("loss", [Series("a", [0, 50, 100], [4.0, 3.0, 2.0])])), "line")
    assert [x for x, _ in points] == [0, 500, 1000]
    ys = [y for _, y in points]
    assert ys == sorted(ys)
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)


def test_long_series_are_binned_under_a_band() -> None:
    series = Series("a", list(range(50_000)), [float(step % 7) for step in range(50_000)])
    chart = line_chart("loss", [series])
    assert 'class="band s0"' in chart
    assert len(chart) < 60_000


def test_several_lines_have_a_legend_with_their_values() -> None:
    chart = line_chart("v", [Series("one", [0, 1], [4.0, 2.0]), Series("two", [0, 1], [5.0, 3.0], "s1")])
    text = "".join(parse(chart).itertext())
    assert "one 4.00 → 2.00" in text
    assert "two 5.00 → 3.00" in text


def test_texts_are_escaped() -> None:
    chart = line_chart("<b>&", [Series("<i>", [0, 1], [1.0, 2.0]), Series("x", [0, 1], [1.0, 2.0])])
    assert "<b>" not in chart
    assert "<i>" not in "".join(chart.split("<i class=")[1:])
    parse(chart)
    parse(scatter("<", [Point('"<&>', 1.0, 2.0), Point("b", 2.0, 1.0)], unit="&", x_label="<"))
    parse(share_bar([Segment("<&", 1.0, "s0")], '"<'))


def test_bars_start_at_zero() -> None:
    root = parse(difference_bars("d", [("a", -1.0, 0.1, "s0"), ("b", 0.5, None, "s1")], unit="bits"))
    below, above = root.iter("rect")
    top, bottom = (float(below.attrib[k]) for k in ("y", "height"))
    assert float(above.attrib["y"]) + float(above.attrib["height"]) == pytest.approx(top, abs=0.2)
    assert bottom == pytest.approx(2 * float(above.attrib["height"]), abs=0.3)
    assert below.find("title").text == "a"  # type: ignore[union-attr]


def test_scatter_puts_equal_values_on_the_diagonal() -> None:
    root = parse(scatter("s", [Point("a", 1.0, 1.0), Point("b", 3.0, 2.0)], unit="", x_label=""))
    dots = [
        e.attrib["d"][1:].removesuffix("h0").split() for e in root.iter("path") if "dot" in e.attrib["class"]
    ]
    x, y = map(float, dots[0])
    assert x + y == pytest.approx(1000, abs=0.2)
    x, y = map(float, dots[1])
    assert x + y > 1000


def test_shares_sum_to_one() -> None:
    root = parse(share_bar([Segment("a", 30.0, "s0"), Segment("b", 10.0, "s1")], "mix"))
    bars = [e.attrib["style"] for e in root.iter("i") if "style" in e.attrib]
    assert bars == ["flex-grow:0.75000", "flex-grow:0.25000"]
    assert "75.0%" in "".join(root.itertext())
