"""Settings of optimisations: the shipped ones, their documentation, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.compose import list_names
from emma.recipes.explain import explain
from emma.recipes.load import load_optimisation, load_recipe
from emma.recipes.schema.optimisation import Optimisation
from emma.tools.optimise.study import _texts
from emma.tools.plan.plan import make_plan

RUNS = {"demo": "demo", "llama3_1b": "emma_llama3_8b_bi"}


def test_shipped_settings_load_and_their_proxies_are_runs() -> None:
    assert set(list_names("optimisations")) == set(RUNS)
    for name, run in RUNS.items():
        settings = load_optimisation(name)
        assert settings.name == name and settings.description
        recipe, proxy = load_recipe(run), load_recipe(run, _texts(settings.proxy.overrides))
        assert proxy.total_tokens <= recipe.total_tokens
        # A proxy's learning rate has decayed by its end.
        assert proxy.schedule.warmup_steps <= 0.1 * proxy.schedule.steps


def test_proxies_of_the_real_run_cost_a_few_percent_of_it() -> None:
    run = "emma_llama3_8b_bi"
    settings = load_optimisation("llama3_1b")
    proxy = make_plan(load_recipe(run, _texts(settings.proxy.overrides))).time
    whole = make_plan(load_recipe(run)).time
    assert proxy is not None and whole is not None
    assert 0.01 < (64 + 5) * proxy.gpu_hours / whole.gpu_hours < 0.03


def test_every_key_is_explained() -> None:
    found = {entry.key for entry in explain("optimisation")}
    assert found == {f"optimisation.{name}" for name in Optimisation.model_fields}
    assert all(entry.description for entry in explain("optimisation"))
    assert explain("optimisation.check.seeds")[0].default == "3"
    with pytest.raises(UserError, match="did you mean `limits`"):
        explain("optimisation.limit")


def test_mistakes_name_file_line_and_key(tmp_path: Path) -> None:
    def message(text: str) -> str:
        path = tmp_path / "asked.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_optimisation(str(path))
        return str(error.value)

    assert "asked.yaml:2" in message("proxies: 32\nproxiess: 3\n") and "proxiess" in message("proxiess: 3\n")
    assert "limits is empty" in message("limits: []\n")
    assert "out of range" in message("replicates: 2\n")
    assert "is not a choice" in message("law: lightgbm\n")
    assert "give every group a number above 0" in message("objective: {weights: {a: 0.0}}\n")
    assert "worse" in message('limits: [{group: "*"}]\n')
    with pytest.raises(UserError, match="choose one of `demo`, `llama3_1b`"):
        load_optimisation("zzz")
