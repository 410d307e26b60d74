"""A phase whose parts a fitted law has asked for: recipe, numbers, card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.laws.law import Law, Repetition
from emma.tools.laws.stored import StoredLaw
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from emma.tools.optimise.levers import levers_of, shares_of
from emma.tools.optimise.study import Target
from emma.tools.runs.decision import Decision
from emma.tools.runs.forgetting import Look
from emma.tools.training.replay import phase_of
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix

GROUP = "category-monolingual-low"
STEPS, STEP = 40, 20


@pytest.fixture
def guarded(tmp_path: Path) -> Recipe:
    tiny = make_tiny_mix(tmp_path / "tiny", samples=40, sequence_length=32)
    path = write_small_run(
        tmp_path, data=tiny.data.model_dump(mode="json", by_alias=True), tokenizer=tiny.tokenizer
    )
    guard = f"guard={{groups: {{{GROUP}: 0.01}}, action: replay, base: measured, replay: {{documents: all}}}}"
    recipe = load_recipe(path, [f"paths.store={tiny.store}", f"schedule.steps={STEPS}", guard])
    build_mix(MixSettings.of_recipe(recipe))
    return recipe


def write_law(recipe: Recipe) -> Path:
    """A law in which half of each group's loss falls with its own share, by the power 0.3."""
    target = Target.of(recipe, 0.0)
    levers = levers_of(recipe.data.mix, target.plan)
    names = [lever.name for lever in levers]
    parameters = np.full((1, 3 + len(names)), -30.0)
    own = names.index("monolingual/low")
    parameters[0, [0, 1, 2, 3 + own]] = 2.0, 0.0, np.log(0.1 / 0.9), 0.0
    nothing = np.zeros((1, *(2 * [parameters.shape[1]])))
    repetition = Repetition(np.ones(len(names)), 0.0)
    law = Law("transfer", shares_of(levers), np.array([own]), parameters, nothing, repetition)
    file = Path(recipe.paths.runs) / f"{recipe.name}-mix" / "asked" / "fit.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"fitted": StoredLaw(law, names, [GROUP]).to_dict()}))
    return file


def test_the_runs_own_law_says_how_much_is_replayed_and_is_named(guarded: Recipe) -> None:
    look = Look(STEP, GROUP, 0.01, 0.011, 0.0003, 0.0105, 0.01, 30, True)
    decision = Decision(STEP, "replay", [look])
    phase, numbers = phase_of(guarded, guarded.run_folder, decision)
    assert numbers.parts == {GROUP: 0.05} and "no fitted law" in numbers.rule
    assert phase.guard is not None and phase.guard.replay.law is None

    file = write_law(guarded)
    phase, numbers = phase_of(guarded, guarded.run_folder, decision)
    assert (
        numbers.rule.startswith(f"the law transfer of {file}") and numbers.to_dict()["rule"] == numbers.rule
    )
    assert 0 < numbers.parts[GROUP] < 0.05
    assert phase.guard is not None and phase.guard.replay.law == str(file)
    gained = {s.language: s.share - s.before for s in numbers.sources if s.share > s.before}
    assert sum(gained.values()) == pytest.approx(
        numbers.parts[GROUP] * (1 - sum(s.before for s in numbers.sources if s.language in gained)), rel=1e-6
    )
