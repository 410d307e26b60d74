"""The heartbeat of a launch, and how long it may take for what it does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emma.tools.runs import heartbeat as module
from emma.tools.runs.heartbeat import Beat, Heartbeat, deadline


def test_phases_are_measured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    heart = Heartbeat(tmp_path, writes=True)
    assert Beat.read(tmp_path) is None
    now += 60
    heart.enter("step", 1)  # start-up, the first step included
    for step in (2, 3, 4):
        now += step
        heart.enter("step", step)
    now += 0.5
    with heart.during("save"):
        now += 100
        heart.write()
        beat = Beat.read(tmp_path)
        assert beat == Beat("save", 4, 1069.5, 1169.5, {"start-up": 60.0, "step": 3.0})
    with heart.during("save"):
        now += 20
    now += 3
    heart.enter("step", 5)
    heart.write()
    beat = Beat.read(tmp_path)
    assert beat is not None and (beat.phase, beat.step, beat.since) == ("step", 5, now)
    assert beat.seconds == {"start-up": 60.0, "step": 3.0, "save": 100.0}, "a save is no part of a step"


def test_only_one_rank_writes(tmp_path: Path) -> None:
    Heartbeat(tmp_path, writes=False).write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("phase", "seconds", "expected"),
    [
        (None, {}, 1800),
        ("start-up", {}, 1800),
        ("end", {"step": 1.0}, 1800),
        ("step", {}, 1800),  # the first one compiles, and warms up
        ("step", {"step": 33.0}, 600),
        ("step", {"step": 90.0}, 900),
        ("save", {"step": 1.0}, 3000),  # ten times the planned 300 s
        ("save", {"step": 1.0, "save": 70.0}, 700),
        ("validation", {"step": 1.0}, 1800),
    ],
)
def test_deadlines_follow_what_was_measured(
    phase: str | None, seconds: dict[str, float], expected: float
) -> None:
    beat = None if phase is None else Beat(phase, 3, 0.0, 0.0, seconds)
    assert deadline(beat, 600, 1800, {"save": 300.0}) == expected
    assert module.FACTOR == 10
