"""Converting the checkpoints of a running job as they become complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from emma.base.errors import UserError
from emma.recipes.compose import read_yaml
from emma.tools.runs.checkpoints import complete_steps

__all__ = ["last_step", "watch"]


def last_step(source: Path) -> int | None:
    """Last step of the schedule, where `source` is a run folder that says so."""
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
    """Converts every complete checkpoint to `destination/step-N`, and each new one, until the last.

    Args:
        source: run folder or folder of checkpoints.
        destination: folder of the exports; steps that are there already are left alone.
        convert: converts a step into a folder.
        until: the last step; None goes on until interrupted.
        interval: seconds between looks.
        say: told what happens.
        sleep: waits.

    Returns:
        The steps converted.

    Raises:
        UserError: a conversion failed, and not because its checkpoint was deleted meanwhile.
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
                say(f"step {step} was deleted while it was converted; going on")
                continue
            converted.append(step)
            say(f"step {step}: {target}")
        if until is not None and (destination / f"step-{until}").exists():
            return converted
        sleep(interval)
