"""Converts a running job's checkpoints as they become complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from emma.base.errors import UserError
from emma.recipes.reading import read_yaml
from emma.tools.runs.checkpoints import complete_steps

__all__ = ["last_step", "watch"]


def last_step(source: Path) -> int | None:
    """Last step of the schedule, if `source` is a run folder that states it."""
    recipe = source / "recipe.yaml"
    if not recipe.is_file():
        return None
    schedule = read_yaml(recipe).values.get("schedule")
    steps = schedule.get("steps") if isinstance(schedule, dict) else None
    return steps if isinstance(steps, int) else None


def watch(
    source: Path,
    destination: Path,
    convert: Callable[[int, Path], None],
    *,
    until: int | None,
    interval: float = 30.0,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Converts every complete checkpoint to `destination/step-N`, then each new one, until the last step.

    Args:
        source: run folder or folder of checkpoints.
        destination: folder of the exports; existing steps are left alone.
        convert: converts one step into a folder.
        until: the last step; if None, continues until interrupted.
        interval: seconds between checks.
        say: receives progress messages.
        sleep: waits for a number of seconds.

    Returns:
        The steps converted.

    Raises:
        UserError: a conversion failed, other than because its checkpoint was deleted meanwhile.
    """
    root = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    converted: list[int] = []
    while True:
        for step in complete_steps(root):
            target = destination / f"step-{step}"
            if target.exists():
                continue
            try:
                convert(step, target)
            except UserError:
                if step in complete_steps(root):
                    raise
                say(f"step {step} was deleted during conversion; continuing")
                continue
            converted.append(step)
            say(f"step {step}: {target}")
        if until is not None and (destination / f"step-{until}").exists():
            return converted
        sleep(interval)
