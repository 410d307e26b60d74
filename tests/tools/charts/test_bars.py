"""Bar charts as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.tools.charts.bars import MANY, grouped_bars, noted_bars, ranked_bars

pytest.importorskip("matplotlib")


def _comments(path: Path) -> list[str]:
    """Texts of a drawing: matplotlib writes letters as outlines, with the text in a comment before each."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip()[5:-4] for line in lines if line.strip().startswith("<!-- ")]


def _ranked(path: Path, count: int) -> Path:
    names = [f"lang{number}" for number in range(count)]
    groups = {"high: 1": [0], "none": [], "low: rest": range(1, count)}
    values = [float(count - number) for number in range(count)]
    return ranked_bars(path, names, values, groups, x_label="languages", y_label="tokens", legend="category")


def test_ranked_bars_name_their_bars_while_they_are_few(tmp_path: Path) -> None:
    few, many = (_comments(_ranked(tmp_path / f"{n}.svg", n)) for n in (MANY, MANY + 1))
    assert {"lang0", f"lang{MANY - 1}", "high: 1", "low: rest", "category", "languages", "tokens"} <= set(few)
    assert "none" not in few and "lang0" not in many


def test_grouped_bars_have_one_bar_of_each_group_at_every_name(tmp_path: Path) -> None:
    path = grouped_bars(tmp_path / "a.svg", ["short", "long"], {"web": [1, 2], "news": [3, 4]}, x_label="%")
    assert {"short", "long", "web", "news", "%"} <= set(_comments(path))
    assert grouped_bars(tmp_path / "none.svg", [], {}, x_label="%").is_file()


def test_noted_bars_and_the_same_drawing_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [
        noted_bars(tmp_path / f"{n}.svg", [("Latin", 90.0, "17"), ("Cyrillic", 0.5, "2")], x_label="%")
        for n in "ab"
    ]
    assert {"Latin", "Cyrillic", "17", "2"} <= {text.strip() for text in _comments(paths[0])}
    assert paths[0].read_bytes() == paths[1].read_bytes()
