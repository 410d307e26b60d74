"""How sections, parents, layouts and overrides make one recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import RecipeError, UserError
from emma.recipes.compose import compose_file, nearest, parse_override
from emma.recipes.load import load_recipe, load_with_origins
from emma.recipes.reading import read_yaml


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_child_changes_keys_of_a_section_that_its_parent_names(tmp_path: Path) -> None:
    path = _write(tmp_path, "child", "extends: emma_llama3_8b_bi\nmodel: {rope_theta: 1.0e+6}\n")
    model = load_recipe(path).model
    assert (model.name, model.rope_theta, model.layers) == ("llama3_8b", 1e6, 32)


def test_child_with_a_base_replaces_what_its_parent_said(tmp_path: Path) -> None:
    _write(tmp_path, "parent", "extends: emma_llama3_8b_bi\nmodel: {rope_theta: 1.0e+6}\n")
    path = _write(tmp_path, "child", "extends: parent.yaml\nmodel: {base: llama3.1_8b}\n")
    model = load_recipe(path).model
    assert (model.name, model.rope_theta) == ("llama3.1_8b", 500_000)


def test_of_several_parents_the_later_wins_and_the_child_over_all(tmp_path: Path) -> None:
    _write(
        tmp_path, "newer", "name: elsewhere\nmodel: llama3.1_8b\nschedule: {steps: 7000, warmup_steps: 7}\n"
    )
    path = _write(
        tmp_path, "child", "extends: [emma_llama3_8b_bi, newer.yaml]\nschedule: {warmup_steps: 8}\n"
    )
    recipe, composed = load_with_origins(path)
    assert (recipe.name, recipe.model.name, recipe.data.name) == ("child", "llama3.1_8b", "mala_bilingual")
    assert (recipe.schedule.steps, recipe.schedule.warmup_steps) == (7000, 8)
    assert composed.origin(("schedule", "steps")) == f"{tmp_path / 'newer.yaml'}:3"
    turned = _write(tmp_path, "turned", "extends: [newer.yaml, emma_llama3_8b_bi]\n")
    assert load_recipe(turned).schedule.steps == 40_000


def test_two_parents_may_share_a_parent(tmp_path: Path) -> None:
    _write(tmp_path, "a", "extends: emma_llama3_8b_bi\nseed: 1\n")
    _write(tmp_path, "b", "extends: emma_llama3_8b_bi\nschedule: {steps: 9000}\n")
    recipe = load_recipe(_write(tmp_path, "child", "extends: [a.yaml, b.yaml]\n"))
    assert (recipe.seed, recipe.schedule.steps) == (1, 9000)


def test_name_is_the_files_own(tmp_path: Path) -> None:
    _write(tmp_path, "parent", "extends: emma_llama3_8b_bi\nname: elsewhere\n")
    assert load_recipe(_write(tmp_path, "child", "extends: parent.yaml\n")).name == "child"


def test_inline_section_takes_the_name_of_the_run(tmp_path: Path) -> None:
    text = "extends: emma_llama3_8b_bi\nlayout: h100_8_bf16\n"
    path = _write(tmp_path, "mine", text)
    _write(tmp_path, "inline", text)
    replaced = load_recipe(path, ["cluster={nodes: 1, gpus_per_node: 8, device: h200}"])
    assert (replaced.cluster.name, replaced.cluster.device) == ("mine", "h200")


def test_relative_paths_start_at_the_file_that_holds_them(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    _write(below, "cluster", "nodes: 1\ngpus_per_node: 8\ndevice: h200\n")
    _write(below, "parent", "extends: emma_llama3_8b_bi\nlayout: h100_8_bf16\ncluster: cluster.yaml\n")
    assert load_recipe(_write(tmp_path, "child", "extends: below/parent.yaml\n")).cluster.device == "h200"


def test_a_runs_keys_win_over_its_layout(tmp_path: Path) -> None:
    text = "extends: emma_llama3_8b_bi\nlayout: h100_8_bf16\nbatch: {micro: 2}\nparallelism: {tensor: 4}\n"
    recipe = load_recipe(_write(tmp_path, "mine", text))
    assert (recipe.batch.micro, recipe.parallelism.tensor, recipe.parallelism.sequence) == (2, 4, True)


def test_a_layout_on_the_command_line_wins_over_the_runs_keys(tmp_path: Path) -> None:
    text = (
        "extends: emma_llama3_8b_bi\nlayout: h100_8_bf16\nbatch: {micro: 2}\n"
        "parallelism: {pipeline: 2, tensor: 4}\nmegatron_args: {log-params-norm: true}\n"
    )
    path = _write(tmp_path, "mine", text)
    recipe = load_recipe(path, ["layout=h100_16_fp8"])
    assert recipe.cluster.name == "h100_16"
    assert recipe.precision.fp8 == "tensorwise"
    assert (recipe.parallelism.tensor, recipe.parallelism.pipeline) == (2, 1)
    assert recipe.batch.micro == 1
    assert recipe.megatron_args == {"log-params-norm": True}


def test_single_overrides_win_over_a_layout_wherever_they_stand() -> None:
    for overrides in (["layout=h100_8_bf16", "batch.micro=2"], ["batch.micro=2", "layout=h100_8_bf16"]):
        recipe = load_recipe("emma_llama3_8b_bi", overrides)
        assert (recipe.cluster.world_size, recipe.batch.micro) == (8, 2)


def test_a_resolved_recipe_takes_another_layout(tmp_path: Path) -> None:
    from emma.recipes.load import write_recipe

    path = tmp_path / "recipe.yaml"
    write_recipe(load_recipe("emma_llama3_8b_bi"), path)
    recipe = load_recipe(path, ["layout=h100_512_fp8"])
    assert recipe.cluster.world_size == 512
    assert recipe.parallelism.distributed_optimizer_instances == 4
    assert recipe.name == "emma_llama3_8b_bi"


def test_an_override_replaces_a_section_or_a_key_of_it() -> None:
    recipe = load_recipe(
        "emma_llama3_8b_bi", ["data=mala_monolingual", "data.mix.seed=7", "model.rope_theta=1e6"]
    )
    assert (recipe.data.name, recipe.data.mix.seed) == ("mala_monolingual", 7)
    assert (recipe.model.rope_theta, recipe.model.name) == (1e6, "llama3_8b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("schedule.learning_rate=1e-5", 1e-5),
        ("a.b=3", 3),
        ("a.b=true", True),
        ("a.b=null", None),
        ("a.b=", None),
        ("a.b=[x, y]", ["x", "y"]),
        ("a.b={c: 1}", {"c": 1}),
        ("a.b=x=y", "x=y"),
        ("a.b='3'", "3"),
    ],
)
def test_override_values_are_yaml(text: str, value: object) -> None:
    key, parsed = parse_override(text)
    assert parsed == value
    assert type(parsed) is type(value)
    assert key == tuple(text.partition("=")[0].split("."))


def test_origins_follow_values() -> None:
    recipe, composed = load_with_origins("emma_llama3_8b_mono", ["seed=5", "layout=h100_8_bf16"])
    assert recipe.seed == 5

    def place(*key: str) -> str:
        origin = composed.origins[key]
        path, _, line = origin.partition(":")
        return f"{Path(path).name}:{bool(line)}" if line else origin

    assert place("seed") == "command line"
    assert place("schedule", "steps") == "emma_llama3_8b_mono.yaml:True"
    assert place("schedule", "learning_rate") == "emma_llama3_8b_bi.yaml:True"
    assert place("model", "layers") == "llama3_8b.yaml:True"
    assert place("batch", "micro") == "h100_8_bf16.yaml:True"
    assert place("parallelism", "tensor") == "h100_64_bf16.yaml:True"
    assert ("seed", "x") not in composed.origins
    assert composed.origin(("optimizer", "unknown")) == composed.origin(("optimizer",))


def test_yaml_anchors_and_merges_are_plain_values(tmp_path: Path) -> None:
    path = _write(tmp_path, "a", "one: &x {p: 1, q: [a, 2.5, true, null]}\ntwo: {<<: *x, p: 3}\n")
    composed = read_yaml(path)
    assert composed.values == {
        "one": {"p": 1, "q": ["a", 2.5, True, None]},
        "two": {"p": 3, "q": ["a", 2.5, True, None]},
    }
    assert type(composed.values["one"]["q"][1]) is float
    assert composed.origins["one", "q", "1"] == f"{path}:1"


def test_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe file"):
        compose_file(tmp_path / "none.yaml")


def test_the_word_nearest_to_a_misspelling() -> None:
    assert nearest("stpes", ["steps", "decay"]) == "did you mean `steps`?"
    both = nearest("aa3", ["aa1", "aa2", "zz"])
    assert "`aa1`" in both
    assert "`aa2`" in both
    assert nearest("qqq", ["steps", "decay"]) == "choose one of `decay`, `steps`"


def test_a_loop_over_three_files_is_named(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        _write(tmp_path, name, f"extends: {parent}.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml → b\.yaml → c\.yaml → a\.yaml"):
        load_recipe(tmp_path / "a.yaml")
