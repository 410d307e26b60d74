"""Shares become keys of a recipe and come back through the planner."""

from __future__ import annotations

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.recipes.schema.data import Mix
from emma.tools.mix.plan import MixPlan, make_plan, water_fill
from emma.tools.mix.prepare import MixSettings, expected_fingerprints
from emma.tools.mix.sources import Source
from emma.tools.optimise.levers import Lever, free_levers, keys_of, levers_of, proportional, shares_of
from tests.tools.optimise.conftest import MakeStudy

BUDGET = 1_000_000_000


def mix(**changes: object) -> Mix:
    web = {
        "share": 60,
        "max_epochs": 4.0,
        "categories": {"high": {"at_least": 1000}, "low": {"at_least": 0, "factor": 3.0, "max_epochs": 6.0}},
    }
    components = {
        "web": {**web, **changes},
        "code": {"share": 30, "temperature": 2.0},
        "books": {"share": 10},
    }
    return Mix.model_validate({"components": components})


def sources() -> list[Source]:
    sizes = {"high": [400_000_000, 90_000_000], "low": [30_000_000, 20_000_000, 1_000_000]}
    found = [
        Source("web", f"{category}{n}", category, 0, 1000, tokens)
        for category, members in sizes.items()
        for n, tokens in enumerate(members)
    ]
    return [
        *found,
        *(Source("code", f"c{n}", None, 0, 1000, 50_000_000 * (n + 1)) for n in range(3)),
        Source("books", "b", None, 0, 1000, 80_000_000),
    ]


def planned(asked: Mix) -> MixPlan:
    plan = make_plan(asked, sources(), BUDGET)
    plan.check()
    return plan


def with_keys(asked: Mix, keys: dict[str, float]) -> Mix:
    values = asked.model_dump()
    for key, value in keys.items():
        target = values["components"]
        *parents, last = key.split(".")
        for part in parents:
            target = target[part]
        target[last] = value
    return Mix.model_validate(values)


@pytest.mark.parametrize("changes", [{}, {"max_epochs_of": {"high0": 0.9, "low1": 0.5}}])
def test_random_shares_come_back_through_the_planner(changes: dict[str, object]) -> None:
    asked = mix(**changes)
    levers = levers_of(asked, planned(asked))
    assert [lever.name for lever in levers] == ["books", "code", "web/high", "web/low"]
    random = np.random.default_rng(0)
    tried = 0
    for _ in range(400):
        shares = random.dirichlet(np.full(4, 4.0))
        # Nothing above its cap ...
        if np.any(shares * BUDGET > [0.999 * lever.cap for lever in levers]):
            continue
        tried += 1
        keys = keys_of(levers, shares, BUDGET)
        back = shares_of(levers_of(asked, planned(with_keys(asked, keys))))
        assert np.abs(back - shares).max() < 1e-5
    assert tried > 20
    # ... and what just reaches it.
    full = np.array([0.1, 0.2, 0.0, 0.0])
    full[3] = levers[3].cap / BUDGET
    full[2] = 1 - full.sum()
    back = shares_of(levers_of(asked, planned(with_keys(asked, keys_of(levers, full, BUDGET)))))
    assert np.abs(back - full).max() < 1e-5


def test_a_level_fills_like_the_planner_does() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        tokens = random.integers(1_000, 1_000_000, 6)
        caps = (tokens * random.uniform(0.5, 4, 6)).astype(int)
        total = int(random.uniform(0.05, 0.999) * caps.sum())
        lever = Lever("a", None, tokens, caps, 1, False)
        parts = np.minimum(lever.level(total) * tokens, caps)
        assert np.abs(parts - water_fill(total, tokens.tolist(), caps.tolist())).max() < 1.5


def test_the_recipes_own_shares_give_its_own_factors_and_its_very_mix(make_study: MakeStudy) -> None:
    asked = mix()
    levers = levers_of(asked, planned(asked))
    keys = keys_of(levers, shares_of(levers), BUDGET)
    assert keys["web.categories.low.factor"] / keys["web.categories.high.factor"] == pytest.approx(
        3, abs=1e-6
    )
    assert [keys[f"{name}.share"] for name in ("books", "code", "web")] == pytest.approx(
        [10, 30, 60], abs=1e-6
    )
    target = make_study().target
    own = MixSettings.of_recipe(target.recipe)
    said = with_keys(own.mix, keys_of(target.levers, shares_of(target.levers), target.budget))
    other = MixSettings(**{**vars(own), "mix": said})
    assert expected_fingerprints(other) == expected_fingerprints(own)


def test_fixed_levers_and_proportions() -> None:
    asked = mix()
    levers = levers_of(asked, planned(asked))
    assert free_levers(levers, ["web/*"]).tolist() == [True, True, False, False]
    assert free_levers(levers, ["web/low", "books"]).tolist() == [False, True, True, False]
    with pytest.raises(UserError, match="'papers' is none of books, code"):
        free_levers(levers, ["papers"])
    parts = proportional(levers, BUDGET)
    held = np.array([80.0, 300, 490, 51])
    assert np.allclose(parts, held / held.sum(), atol=1e-6)
    # Caps that bind are kept.
    assert proportional(levers, 3_700_000_000)[0] == pytest.approx(4 * 80 / 3700)


def test_a_share_of_nothing_is_refused() -> None:
    asked = mix(exclude=["low*"])
    kept = [source for source in sources() if source.category != "low"]
    assert [lever.name for lever in levers_of(asked, make_plan(asked, kept, BUDGET))] == [
        "books",
        "code",
        "web/high",
    ]
    tiny = Mix.model_validate({"components": {"web": {"share": 1}, "code": {"share": 1e-12}}})
    both = [Source(name, "a", None, 0, 10, 5000) for name in ("web", "code")]
    with pytest.raises(UserError, match="takes nothing of it"):
        levers_of(tiny, make_plan(tiny, both, 1000))
