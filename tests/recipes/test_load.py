"""Reading a run by name, file or folder; writing it so that it reads back equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.compose import list_names
from emma.recipes.load import load_recipe, load_section, write_recipe


@pytest.mark.parametrize("run", list_names("runs"))
def test_written_recipe_reads_back_equal(run: str, tmp_path: Path) -> None:
    recipe = load_recipe(run, ["environment.TEXT='a: b # c\"ä\\n'", "megatron_args.log-params-norm=true"])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.sha256 == recipe.sha256
    # A run folder is named by its recipe.yaml.
    assert load_recipe(tmp_path) == recipe


def test_sha256_depends_on_values_alone(tmp_path: Path) -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    assert load_recipe("emma_llama3_8b_bi", ["seed=1234"]).sha256 == recipe.sha256
    assert load_recipe("emma_llama3_8b_bi", ["seed=1235"]).sha256 != recipe.sha256


def test_a_recipe_does_not_change(tmp_path: Path) -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    with pytest.raises(ValueError, match="frozen"):
        recipe.schedule.steps = 3  # type: ignore[misc]


def test_a_section_by_itself_follows_its_base() -> None:
    assert load_section("precision", "fp8_tensorwise").grad_reduce_fp32
    with pytest.raises(UserError, match="`llama3_8b`"):
        load_section("model", "llama3_8c")


def test_a_folder_may_have_the_name_of_a_shipped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("emma_llama3_8b_bi").mkdir()
    assert load_recipe("emma_llama3_8b_bi").name == "emma_llama3_8b_bi"
