"""Marks and text stand out from what is behind them, in light and dark (WCAG 2.2: 3:1 for marks, 4.5:1 for text)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STYLE = Path(__file__).parents[3] / "tools" / "report" / "style.css"


def _luminance(channels: tuple[float, ...]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(code: str) -> tuple[float, ...]:
    return tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))


def contrast(front: str, back: str, opacity: float = 1.0) -> float:
    mixed = tuple(opacity * f + (1 - opacity) * b for f, b in zip(_rgb(front), _rgb(back), strict=True))
    high, low = sorted((_luminance(mixed), _luminance(_rgb(back))), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out(scheme: int) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    text = STYLE.read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\n\s*\}", text, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    paper, land = colours["paper"], colours["rule"]
    marks = [name for name in colours if re.fullmatch(r"[so]\d|gain|loss|muted", name)]
    assert len(marks) == 19
    (dots,) = re.findall(r"svg \.dot \{.*?opacity: ([.\d]+)", text)
    for name in marks:
        assert contrast(colours[name], paper, float(dots)) >= 3, name
    for name in ("gain", "loss", "muted"):
        assert contrast(colours[name], land) >= 3, f"{name} on the map"
    for name in ("ink", "muted", "gain", "loss"):
        assert contrast(colours[name], paper) >= 4.5, name
