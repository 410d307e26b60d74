"""The learning rate that each step of Megatron's real loop has had, against the proof's own formulas."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from emma.base.errors import RecipeError
from emma.recipes.schema import Recipe
from emma.recipes.schema.training import Schedule
from emma.tools.prove.rates import learning_rate
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.curves import own_rate
from tests.tools.training.conftest import Small
from tests.training_run import train_run

INFINITE = (
    "schedule={steps: 10, learning_rate: 3e-3, min_learning_rate: 1e-4, warmup_steps: 2, decay: cosine_inf, "
    "constant_learning_rate: 1e-3, cooldown_steps: 3, anneal_steps: 2}"
)
QUIET = "validation.groups=[]"


def rates(run: RunFolder) -> dict[int, float]:
    return {row["step"]: row["learning_rate"] for row in read_metrics(run.metrics_file)[0]}


def expected(recipe: Recipe) -> dict[int, float]:
    steps = range(1, recipe.schedule.steps + 1)
    return {step: learning_rate(recipe.schedule, step - 1) for step in steps}


def test_an_infinite_schedule_and_its_resumption(make_small: Callable[[int], Small]) -> None:
    recipe = make_small(10).recipe("infinite", INFINITE, QUIET)
    run = train_run(recipe)
    assert rates(run) == pytest.approx(expected(recipe), rel=1e-6)
    shutil.rmtree(run.checkpoints / "iter_0000010")
    run.metrics_file.write_text("")
    train_run(recipe)
    assert sorted(rates(run)) == [6, 7, 8, 9, 10]
    assert rates(run) == pytest.approx({k: v for k, v in expected(recipe).items() if k > 5}, rel=1e-6)


@pytest.mark.slow
def test_a_phase_goes_on_along_the_curve_and_one_that_re_warms_begins_where_it_ended(
    make_small: Callable[[int], Small],
) -> None:
    small = make_small(10)
    run = train_run(small.recipe("before", "checkpoint.interval=5", QUIET))
    for name, schedule in {
        "along": "{steps: 10, learning_rate: 3e-3, min_learning_rate: 1e-4, decay: linear, offset: 5}",
        "anew": "{steps: 10, learning_rate: 3e-3, warmup_from: 1e-4, warmup_steps: 4, decay: linear}",
    }.items():
        start = f"start={{mode: phase, checkpoint: '{run.path}', step: 5}}"
        recipe = small.recipe(name, start, f"schedule={schedule}", QUIET)
        assert rates(train_run(recipe)) == pytest.approx(expected(recipe), rel=1e-6)


@pytest.mark.slow
def test_a_range_test_rises_from_one_rate_to_the_other(make_small: Callable[[int], Small]) -> None:
    schedule = "schedule={steps: 10, learning_rate: 1e-1, min_learning_rate: 1e-5, decay: range_test}"
    recipe = make_small(10).recipe("range", schedule, QUIET)
    found = rates(train_run(recipe))
    assert found == pytest.approx(expected(recipe), rel=1e-6)
    assert (found[1], found[10]) == (pytest.approx(1e-5), pytest.approx(1e-1))


@pytest.mark.parametrize("more", [{}, {"anneal_steps": 3}, {"anneal_steps": 3, "offset": 4}])
def test_the_formulas_agree(more: dict[str, int]) -> None:
    """The trainer's against the proof's."""
    schedule = Schedule(
        steps=20,
        learning_rate=3.0,
        min_learning_rate=0.5,
        warmup_steps=4,
        warmup_from=0.2,
        decay="cosine_inf",
        constant_learning_rate=1.0,
        cooldown_steps=6,
        **more,
    )
    for updates in range(21):
        assert own_rate(schedule, updates + schedule.offset) == pytest.approx(
            learning_rate(schedule, updates)
        )


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("decay: cosine_inf", "go with decay: cosine_inf"),
        ("cooldown_steps: 3", "go with decay: cosine_inf"),
        ("anneal_steps: 3", "goes with nothing else"),
        ("decay: cosine_inf, cooldown_steps: 3, constant_learning_rate: 2.0", "must lie between"),
        ("decay: cosine_inf, cooldown_steps: 30, constant_learning_rate: 0.5", "exceed steps"),
        ("decay: cosine_inf, cooldown_steps: 3, constant_learning_rate: 0.5, anneal_steps: 2", "above 0"),
        ("decay: range_test", "above 0"),
        ("decay: range_test, min_learning_rate: 0.1, warmup_steps: 2", "without warm-up"),
        ("warmup_from: 0.5", "needs warmup_steps"),
        ("warmup_from: 1.5, warmup_steps: 2", "needs warmup_steps"),
        ("wsd_decay_style: cosine", "goes with decay: wsd"),
    ],
)
def test_what_no_curve_can_be_is_refused(
    schedule: str, said: str, make_small: Callable[[int], Small]
) -> None:
    with pytest.raises(RecipeError, match=said):
        make_small(10).recipe("refused", f"schedule={{steps: 10, learning_rate: 1.0, {schedule}}}")
