"""A cluster file from what Slurm and the machine say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.commands.slurm import group
from emma.recipes.compose import list_names
from emma.recipes.load import load_section
from emma.slurm.query import Partition, parse_nodes
from emma.slurm.site import Machine, Site, describe, look_around, write_site
from tests.slurm.conftest import MakeRecipe
from tests.slurm.pretended import pretend

PARTITION = Partition("gpu", True, True, 2 * 86400, 40, "REQUEUE", 60)


def site(**changes: object) -> Site:
    facts: dict[str, object] = {
        "cluster": "ours",
        "partition": PARTITION,
        "nodes": 40,
        "gpus": 4,
        "gpu": "h100",
        "cores": 64,
        "memory_mib": 500_000,
        "settings": {"KillWait": "30 sec", "PrivateData": "jobs", "SelectType": "select/cons_tres"},
        "accounts": ["project_1", "project_2"],
        "qos": ["normal"],
    }
    return Site(**{**facts, **changes})  # type: ignore[arg-type]


def test_what_slurm_says_becomes_a_section(tmp_path: Path) -> None:
    machine = Machine(["eth0", "hsn0"], [], ["singularity"], pyxis=True)
    text = describe(site(), machine)
    write_site(text, tmp_path / "ours.yaml")
    cluster = load_section("cluster", str(tmp_path / "ours.yaml"))
    assert (cluster.name, cluster.device, cluster.gpus_per_node, cluster.nodes) == ("ours", "h100", 4, 1)
    assert cluster.network == "slingshot" and cluster.host_memory_gib == 488 and cluster.launcher == "srun"
    slurm = cluster.slurm
    assert (slurm.partition, slurm.account, slurm.requires) == ("gpu", "project_1", ["account"])
    assert (slurm.time_limit, slurm.cpus_per_rank, slurm.network_interface) == ("24:00:00", 16, "hsn0")
    assert slurm.gpu_option == "--gpus-per-node={gpus}"
    for words in ("KillWait 30 sec", "PrivateData jobs", "PreemptMode REQUEUE, GraceTime 60 s", "project_2"):
        assert words in text
    assert "found: singularity, pyxis" in text


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("nvidia_h100_80gb_hbm3", "h100"),
        ("GH200", "gh200"),
        ("a100-sxm4", "a100"),
        ("mi250", "mi250x"),
        ("nvidia_b200", "b200"),
    ],
)
def test_names_of_gpus(name: str, device: str, tmp_path: Path) -> None:
    write_site(describe(site(gpu=name), Machine()), tmp_path / "x.yaml")
    assert load_section("cluster", str(tmp_path / "x.yaml")).device == device


def test_a_kind_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which tells no kind\. Fix: pass --device, one of h100"):
        describe(site(gpu=""), Machine())
    assert "device: h200" in describe(site(gpu=""), Machine(), "h200")
    with pytest.raises(UserError, match="did you mean `h100`"):
        describe(site(), Machine(), "h10")


def test_short_partitions_and_older_slurm(tmp_path: Path) -> None:
    short = Partition("debug", False, True, 1800, 2)
    text = describe(site(partition=short, settings={"SelectType": "select/cons_res"}), Machine())
    write_site(text, tmp_path / "x.yaml")
    slurm = load_section("cluster", str(tmp_path / "x.yaml")).slurm
    assert (slurm.time_limit, slurm.signal_seconds, slurm.gpu_option) == (
        "00:30:00",
        600,
        "--gres=gpu:{gpus}",
    )
    shortest = Partition("debug", False, True, 300, 2)
    write_site(describe(site(partition=shortest), Machine()), tmp_path / "x.yaml", overwrite=True)
    assert load_section("cluster", str(tmp_path / "x.yaml")).slurm.signal_seconds == 75


def test_nodes_as_slurm_prints_them() -> None:
    text = (
        "NodeName=n1 Arch=x86_64 CPUTot=128 Gres=gpu:h100:4(S:0-1),nvme:1 OS=Linux 5.1 x RealMemory=512000 "
        "ThreadsPerCore=2 Partitions=gpu,debug Reason=a b=c\n"
        "NodeName=n2 CPUTot=4 Gres=(null) RealMemory=4000 ThreadsPerCore=1 Partitions=cpu\n"
        "NodeName=n3 CPUTot=4 Gres=gpu:8 RealMemory=4000 ThreadsPerCore=1 Partitions=gpu\n"
    )
    one, two, three = parse_nodes(text)
    assert (one.cores, one.gpus, one.gpu, one.memory_mib, one.partitions) == (
        64,
        4,
        "h100",
        512000,
        ["gpu", "debug"],
    )
    assert (two.gpus, two.gpu) == (0, "") and (three.gpus, three.gpu) == (8, "")


def test_what_this_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, state in (("lo", "unknown"), ("ib0", "up"), ("eth1", "down")):
        folder = tmp_path / "class" / "net" / name
        folder.mkdir(parents=True)
        (folder / "operstate").write_text(f"{state}\n")
    (tmp_path / "class" / "infiniband" / "mlx5_0").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = look_around(tmp_path)
    assert machine == Machine(["ib0"], ["mlx5_0"], [], pyxis=False)
    text = describe(site(), machine)
    assert "network: infiniband" in text and "network_interface: ib0" in text


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        write_site(describe(site(), Machine()), path)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match=r"ends in \.yaml"):
        write_site("", tmp_path / "ours.txt")


def test_bad_nodes_are_shown_and_forgiven(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from emma.slurm.nodes import remember

    make_recipe()
    Path("runs").mkdir()
    remember(Path("runs"), {"n7": ["ill"]}, "run")
    assert "n7  ill (run, " in CliRunner().invoke(group, ["site", "nodes"]).output
    assert "may be used again" in CliRunner().invoke(group, ["site", "forgive", "n7"]).output
    assert "no node failed" in CliRunner().invoke(group, ["site", "nodes"]).output


SITES = ("leonardo", "marenostrum5", "jupiter", "alps", "snellius", "lumi")


@pytest.mark.parametrize("name", SITES)
def test_shipped_sites_render_and_name_what_is_missing(
    name: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emma.recipes.networks import network
    from emma.slurm.render import render_train

    assert name in list_names("clusters")
    pretend(tmp_path / "pretended", monkeypatch)
    recipe = make_recipe(
        f"cluster={name}",
        "cluster.nodes=2",
        "precision.compute=bf16",
        "batch={micro: 1, global: 16, sequence_length: 32}",
    )
    text = render_train(recipe).text
    assert f"#SBATCH --ntasks-per-node={recipe.cluster.gpus_per_node}" in text
    for variable in network(recipe.cluster.network).environment:
        assert f"export {variable}=" in text
    answer = CliRunner().invoke(
        group,
        ["submit", str(tmp_path / "small.yaml"), f"cluster={name}", "cluster.nodes=2", "precision.compute=bf16",
         "batch={micro: 1, global: 16, sequence_length: 32}", "--only", "train", "--dry-run"],
        standalone_mode=False,
    )  # fmt: skip
    for required in recipe.cluster.slurm.requires:
        assert f"cluster.slurm.{required}: is not set" in answer.stderr
        break
    assert ("is not proven" in answer.stderr) == (name == "lumi")
