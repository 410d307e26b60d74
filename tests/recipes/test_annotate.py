"""The resolved recipe with origins."""

from __future__ import annotations

from ruamel.yaml import YAML

from emma.recipes.load import load_recipe
from tests.command_line import emma


def test_each_value_says_where_it_was_given() -> None:
    answer = emma("recipe", "show", "emma_llama3_8b_mono", "seed=7", "--origins")
    assert answer.code == 0
    lines = answer.out.splitlines()

    def line(start: str) -> str:
        return next(text for text in lines if text.strip().startswith(start))

    assert line("seed: 7").endswith("# command line")
    assert "# recipes/runs/emma_llama3_8b_mono.yaml:" in line("steps: 25000")
    assert "# recipes/models/llama3_8b.yaml:" in line("layers: 32")
    assert line("tie_embeddings").endswith("# default")
    # It is still the recipe.
    assert YAML(typ="safe").load(answer.out) == load_recipe("emma_llama3_8b_mono", ["seed=7"]).to_dict()


def test_origins_are_comments_so_not_for_json() -> None:
    answer = emma("recipe", "show", "emma_llama3_8b_mono", "--origins", "--json")
    assert answer.code == 2
    assert "--origins" in answer.err
