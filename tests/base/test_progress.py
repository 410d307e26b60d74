"""Progress in a log file: plain lines, few of them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from emma.base import progress as module
from emma.base.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that a bar sees."""
    now = [1000.0]
    monkeypatch.setattr(module._Lines, "_time", lambda self: now[0], raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.delenv("EMMA_PROGRESS", raising=False)
    yield now


def test_one_line_a_minute_without_carriage_returns(clock: list[float]) -> None:
    file = io.StringIO()
    with progress(total=180, desc="pack", file=file) as bar:
        for _ in range(180):
            clock[0] += 1
            bar.update(1)
    lines = file.getvalue().splitlines()
    assert 3 <= len(lines) <= 4 and all(line.startswith("pack: ") for line in lines)
    assert "\r" not in file.getvalue() and "180/180" in lines[-1]


def test_what_is_done_within_a_minute_says_nothing(clock: list[float]) -> None:
    file = io.StringIO()
    for _ in progress(range(50), desc="import", file=file):
        clock[0] += 1
    assert file.getvalue() == ""
