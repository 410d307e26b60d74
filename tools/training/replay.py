"""The phase that follows where a guard has ended a run: its recipe, its mix, its run folder."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.schema import Recipe
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from emma.tools.mix.replay import Replayed, replayed_mix
from emma.tools.mix.replay_law import parts_by_rule
from emma.tools.runs.decision import Decision
from emma.tools.runs.run_folder import RunFolder

__all__ = ["continued", "phase_of", "write_phase"]


def continued(recipe: Recipe, folder: Path, *, write: bool = True) -> tuple[Recipe, Path]:
    """The run in which training goes on: this one, or the last of the phases that its guards have begun.

    Args:
        recipe: of the run.
        folder: its run folder.
        write: write a phase that is decided and not there yet.

    Raises:
        UserError: no phase can be written.
    """
    while (decision := RunFolder(folder).standing_decision(recipe)) is not None:
        if decision.action != "replay" or decision.refused is not None:
            break
        if RunFolder(folder).stop_request.exists():
            break  # a teammate asked for it
        if decision.phase is None:
            if not write:
                break
            decision = write_phase(recipe, folder, decision)
        folder = folder.parent / str(decision.phase)
        recipe = load_recipe(folder)
    return recipe, folder


def write_phase(recipe: Recipe, folder: Path, decision: Decision) -> Decision:
    """Writes the phase: its mix, then its run folder with `recipe.yaml`, then its name into the run's `guard.json`. Killed
    and called again it ends in the same files.

    Raises:
        UserError: what is left of the store cannot fill the phase; recorded as the decision's `refused`.
    """
    try:
        phase, numbers = phase_of(recipe, folder, decision)
    except UserError as error:
        # A plan names its faults in lines of their own.
        refused = decision.write(folder, refused=" ".join(str(error).split()))
        raise UserError(refused.refusal(folder)) from None
    build_mix(MixSettings.of_recipe(phase))
    write_recipe(phase, folder.parent / phase.name / "recipe.yaml")
    return decision.write(folder, phase=phase.name, replay=numbers.to_dict())


def phase_of(recipe: Recipe, folder: Path, decision: Decision) -> tuple[Recipe, Replayed]:
    """The phase's recipe and the numbers of its mix; nothing is written.

    It begins with weights and moments of the checkpoint at which the run ended, trains the rest of its steps along the
    rest of its schedule, on the mix of `tools/mix/replay.py`. Its guard compares with the same base, has the rest of the
    probability of a false alarm, records until `guard.replay.settle` of its steps are done, and may write one phase fewer;
    where that leaves none, it stops the run.

    Raises:
        UserError: what is left of the store cannot fill it.
    """
    guard, schedule = recipe.guard, recipe.schedule
    assert guard is not None
    rest = schedule.steps - decision.step
    name = _next_name(recipe.name)
    samples = decision.step * recipe.batch.global_
    asked = parts_by_rule(
        {look.group: (look.rise, look.bound) for look in decision.looks},
        guard.replay,
        pq.read_table(recipe.mix_folder / "plan.parquet").to_pylist(),
        rest / schedule.steps,
        sorted((folder.parent / f"{recipe.name}-mix").glob("*/fit.json")),
    )
    settings = replace(
        MixSettings.of_recipe(recipe),
        name=name,
        folder=Path(recipe.paths.mix) / name,
        samples=rest * recipe.batch.global_,
    )
    again = guard.replay.documents == "all"
    mix, numbers = replayed_mix(settings, recipe.mix_folder, samples, asked.parts, again=again)
    law = None if asked.law is None else str(asked.law)
    values = recipe.to_dict()
    phases = guard.replay.phases - 1
    values |= {
        "name": name,
        "description": f"Goes on after step {decision.step} of {recipe.name}, with more text of what it forgot",
        "data": values["data"] | {"name": name, "mix": mix.model_dump(mode="json", by_alias=True)},
        "schedule": values["schedule"] | {"steps": rest, "offset": schedule.offset + decision.step},
        "start": {"mode": "phase", "checkpoint": str(folder), "step": decision.step},
        "guard": values["guard"]
        | {
            "action": "replay" if phases else "stop",
            "false_alarms": guard.false_alarms * rest / schedule.steps,
            "from_step": math.ceil(guard.replay.settle * rest),
            "base": guard.base or str(folder),
            "replay": values["guard"]["replay"] | {"phases": max(1, phases), "law": guard.replay.law or law},
        },
    }
    values["safety"] = values["safety"] | {"skip_steps": []}
    return Recipe.model_validate(values), replace(numbers, rule=asked.rule)


def _next_name(name: str) -> str:
    """`run-replay1` after `run`, `run-replay2` after that."""
    match = re.fullmatch(r"(.+)-replay(\d+)", name)
    return f"{match[1]}-replay{int(match[2]) + 1}" if match else f"{name}-replay1"
