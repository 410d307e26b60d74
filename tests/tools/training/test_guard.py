"""A guard in Megatron's real loop: it ends a launch at a checkpoint, and says why; what a recipe may ask of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emma.base.errors import RecipeError, UserError
from emma.base.files import read_json, write_json
from emma.tools.mix.layout import read_mix
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.decision import read_decision
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import GUARDED, RunFolder
from emma.tools.training.plan_start import check_mix
from tests.ranks import RanksError
from tests.tools.training.conftest import Small
from tests.training_run import train_run

GROUP = "component-monolingual"
WHOLE_GROUPS = "validation={interval: 2, samples: null}"
# So high that the loss rises at once.
RUINOUS = "schedule={steps: 6, learning_rate: 1.0, min_learning_rate: 1.0, warmup_steps: 0, decay: constant}"


def guard(action: str, bound: float = 0.01, more: str = "") -> str:
    return f"guard={{groups: {{{GROUP}: {bound}}}, action: {action}{more}}}"


def test_a_launch_is_stopped_stays_stopped_and_goes_on_with_a_warning(
    make_small: Callable[[int], Small],
) -> None:
    small = make_small(6)
    recipe = small.recipe("stopped-by-guard", RUINOUS, WHOLE_GROUPS, guard("stop"))
    run = train_run(recipe)
    state, decision = read_json(run.read_launch().state_file), read_decision(run.path)
    assert (state["state"], state["step"]) == (GUARDED, 2) and complete_steps(run.checkpoints) == [2]
    assert decision is not None and (decision.step, decision.action, decision.phase) == (2, "stop", None)
    (look,) = decision.looks
    assert look.group == GROUP and look.rise is not None and look.at_least is not None
    assert look.rise > look.at_least > 0.01
    # Two of six steps: a third of the run's five percent.
    assert look.level == pytest.approx(0.05 / 3)
    row = read_metrics(run.metrics_file)[1][-1]
    assert row["guard"] == [look.to_dict()]
    first = read_metrics(run.metrics_file)[1][0]
    assert "guard" not in first and first["step"] == 0
    assert look.rise == pytest.approx(row["validation"][GROUP] / first["validation"][GROUP] - 1, rel=1e-4)

    with pytest.raises(
        UserError, match=r"guard ended it at step 2: component-monolingual: .*guard\.action=warn"
    ):
        run.prepare(recipe, take_over=True)
    # A bound that is not exceeded lets it go on, and so does a warning.
    looser = small.recipe(
        "stopped-by-guard", RUINOUS, WHOLE_GROUPS, guard("stop", bound=look.at_least * 1.01)
    )
    assert run.standing_decision(looser) is None
    train_run(small.recipe("stopped-by-guard", RUINOUS, WHOLE_GROUPS, guard("warn")))
    looks = {row["step"]: row["guard"] for row in read_metrics(run.metrics_file)[1] if "guard" in row}
    assert list(looks) == [2, 4, 6] and complete_steps(run.checkpoints)[-1] == 6
    assert [look[0]["level"] for look in looks.values()] == pytest.approx([0.05 / 3] * 3)
    # Training has passed the step since: the guard has no say any more about that.
    assert run.standing_decision(recipe) is None


def test_losses_of_other_documents_are_refused(make_small: Callable[[int], Small]) -> None:
    """What was measured at step 0 must be what is measured now; all ranks say so before the first step."""
    small = make_small(6)
    run = RunFolder(small.recipe("stopped-by-guard").run_folder)
    if not run.guard_base_file.is_file():
        pytest.skip("needs the run of the test before")
    base = read_json(run.guard_base_file)
    mix = read_mix(small.recipe("x").mix_folder)
    assert np.sum(base["groups"][GROUP]["nats"]) / mix.groups[GROUP]["label_tokens"] == pytest.approx(
        read_metrics(run.metrics_file)[1][0]["validation"][GROUP], rel=1e-6
    )
    assert len(base["groups"][GROUP]["nats"]) == mix.groups[GROUP]["documents"]
    more = f", base: '{run.path}'"
    base["groups"][GROUP]["rows"] = "0" * 64
    write_json(run.guard_base_file, base)
    with pytest.raises(RanksError, match="are of other documents than this run validates with"):
        train_run(small.recipe("other-documents", WHOLE_GROUPS, guard("stop", more=more)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["start={mode: scratch}", guard("stop")], "no base at its step 0"),
        (["validation.at_start=false", guard("stop")], "compares with the losses at step 0"),
        (["validation.groups=[component-bilingual]", guard("stop")], "is guarded .* but not evaluated"),
        (["train={only: [embeddings]}", guard("replay")], "takes over the moments of all weights"),
        (["guard={groups: {}}"], "guard.groups"),
        (["guard={groups: {a: -0.1}}"], "out of range"),
        (["guard={groups: {a: 0.1}, replay: {weak: 0.3, strong: 0.2}}"], "must not decrease"),
    ],
)
def test_what_cannot_be_guarded_is_refused(
    overrides: list[str], said: str, make_small: Callable[[int], Small]
) -> None:
    with pytest.raises(RecipeError, match=said):
        make_small(6).recipe("refused", *overrides)


def test_groups_that_the_mix_lacks_or_that_are_too_small_are_refused(
    make_small: Callable[[int], Small],
) -> None:
    with pytest.raises(RecipeError, match=r"guard\.groups: `language-xyz` is not a group"):
        check_mix(make_small(6).recipe("refused", "guard={groups: {language-xyz: 0.1}}"))
    with pytest.raises(RecipeError, match=r"language-swh_Latn has \d+ validation documents"):
        check_mix(make_small(6).recipe("refused", "guard={groups: {language-swh_Latn: 0.1}}"))
