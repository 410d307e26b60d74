"""Job scripts: complete, readable, valid shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.slurm.own_template import load_run
from emma.slurm.render import render_stage, render_train
from tests.slurm.conftest import MakeRecipe

CLUSTER_LINE = "cluster: {device: cpu, gpus_per_node: 1, name: cpu}\n"
TEMPLATES = {
    "venv": [],
    "apptainer": [
        "cluster.slurm.container=/images/emma.sif",
        "cluster.slurm.mounts=[/scratch, '/data:/corpus']",
    ],
    "pyxis": [
        "cluster.slurm.container=registry#team/emma:1",
        "cluster.slurm.mounts=[/scratch, '/data:/corpus']",
    ],
}


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_script_is_valid_shell(template: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        f"cluster.slurm={{template: {template}}}"
        if template == "venv"
        else f"cluster.slurm={{template: {template}, container: /x.sif}}",
        *TEMPLATES[template],
        "cluster.slurm.modules=[gcc/13, cuda]",
        "cluster.slurm.setup=['export A=\"b c\"']",
        "cluster.slurm.stages.pack={tasks: 4}",
    )
    scripts = [render_train(recipe), render_stage(recipe, "pack"), render_stage(recipe, "pack", finish=True)]
    scripts += [render_stage(recipe, stage) for stage in ("mix", "convert", "evaluate", "release")]
    for script in scripts:
        checked = subprocess.run(
            ["bash", "-n"], input=script.text, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "module load gcc/13 cuda" in script.text and 'export A="b c"' in script.text
        lines = script.text.splitlines()
        assert lines[0] == "#!/bin/bash"
        last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[:last]), (
            "sbatch stops reading options at the first command"
        )
    if template == "apptainer":
        assert (
            "--bind " in scripts[0].text
            and "/data:/corpus" in scripts[0].text
            and "--nv" not in scripts[0].text
        )
    if template == "pyxis":
        assert "/scratch:/scratch,/data:/corpus" in scripts[0].text


def test_training_asks_for_what_the_recipe_says(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        "cluster={nodes: 2, gpus_per_node: 4, device: h100, launcher: srun}",
        "precision.compute=bf16",
        "cluster.slurm={partition: gpu, account: project_1, qos: normal, cpus_per_rank: 12, time_limit: 1-12:00:00, "
        "signal_seconds: 300, gpu_option: '--gres=gpu:h100:{gpus}', srun: ['--cpu-bind=none'], sbatch: ['--licenses=scratch'], "
        "network_interface: ib0}",
        "environment={NCCL_DEBUG: 'WARN INFO'}",
        "batch.micro=1",
    )
    script = render_train(recipe)
    asked = options(script.text)
    for option in (
        *("--partition=gpu", "--account=project_1", "--qos=normal", "--time=1-12:00:00", "--nodes=2"),
        *("--ntasks-per-node=4", "--gres=gpu:h100:4", "--cpus-per-task=12", "--signal=TERM@300", "--requeue"),
        *("--exclusive", "--licenses=scratch", "--open-mode=append"),
    ):
        assert option in asked, option
    assert f'--comment="emma train {tmp_path}/runs/small"' in asked
    assert "export NCCL_SOCKET_IFNAME=ib0" in script.text and "export NCCL_DEBUG='WARN INFO'" in script.text
    ranks = next(line for line in script.text.splitlines() if line.startswith("ranks="))
    for option in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=12",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
    ):
        assert option in ranks
    assert script.gpu_hours == 2 * 4 * 36


def test_array_tasks_share_a_pack_and_one_job_joins_them(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("cluster.slurm.stages.pack={tasks: 4, concurrent: 2, cpus: 8, partition: cpu}")
    array, finish = render_stage(recipe, "pack"), render_stage(recipe, "pack", finish=True)
    assert "--array=0-3%2" in options(array.text) and "--partition=cpu" in options(array.text)
    assert '"--shard=$SLURM_ARRAY_TASK_ID/4"' in array.text and "--finish" not in array.text
    assert "--finish" in finish.text and not any("--array" in option for option in options(finish.text))


def test_array_tasks_share_benchmarks_and_one_job_joins_them(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("cluster.slurm.stages.evaluate={tasks: 8, gpus: 1, arguments: [--tier, core]}")
    array, finish = render_stage(recipe, "evaluate"), render_stage(recipe, "evaluate", finish=True)
    assert "--array=0-7" in options(array.text)
    assert '"--shard=$SLURM_ARRAY_TASK_ID/8" --tier core' in array.text
    assert "--tier core" in finish.text and "--shard" not in finish.text


def test_a_template_of_ones_own_reuses_the_shipped_parts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    own = tmp_path / "site.j2"
    own.write_text('{% extends "venv.sh.j2" %}{% block setup %}source /site/profile\n{% endblock %}')
    script = render_train(make_recipe(f"cluster.slurm.template={own}"))
    assert "source /site/profile" in script.text and "emma.tools.training.worker" in script.text
    own.write_text("{% if %}")
    with pytest.raises(UserError, match=r"site\.j2:1: .*Fix: correct the template"):
        render_train(make_recipe(f"cluster.slurm.template={own}"))
    own.write_text("{{ nothing.here }}")
    with pytest.raises(UserError, match="'nothing' is undefined"):
        render_train(make_recipe(f"cluster.slurm.template={own}"))
    with pytest.raises(UserError, match=r"gone\.j2 is not in"):
        render_train(make_recipe("cluster.slurm.template=gone.j2"))


def test_a_template_is_found_beside_the_recipe_that_names_it(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_recipe()
    (tmp_path / "site.j2").write_text('{% extends "venv.sh.j2" %}{% block setup %}beside{% endblock %}')
    cluster = "cluster: {name: cpu, gpus_per_node: 1, device: cpu, slurm: {template: site.j2}}"
    text = (tmp_path / "small.yaml").read_text()
    (tmp_path / "own.yaml").write_text(
        "".join(line for line in f"{text}{cluster}\n".splitlines(keepends=True) if line != CLUSTER_LINE)
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load_run(tmp_path / "own.yaml")
    assert "beside" in render_train(recipe).text
    (elsewhere / "other.j2").write_text('{% extends "venv.sh.j2" %}{% block setup %}here{% endblock %}')
    recipe = load_run(tmp_path / "own.yaml", ["cluster.slurm.template=other.j2"])
    assert "here" in render_train(recipe).text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.slurm.time_limit=10h", r"'10h' is not a time limit"),
        ("cluster.slurm.time_limit=00:05:00", "leaves no time to train before the signal 600 s"),
        ("cluster.slurm.template=docker", "none of venv, apptainer, singularity, pyxis"),
        ("cluster.slurm.template=pyxis", "needs a container"),
        ("cluster.slurm.stages={mix: {tasks: 2}}", "only pack and evaluate can be shared"),
        ("cluster.slurm.stages={evaluate: {tasks: 2}}", "held-out text is not shared by array tasks"),
        ("cluster.slurm.stages={train: {}}", "described by the keys of slurm itself"),
        ("cluster.slurm.stages={pakc: {}}", "pakc"),
    ],
)
def test_wrong_settings_are_refused(override: str, message: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(override)
