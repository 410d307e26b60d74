"""The distribution as its users get it: what the files hold, and what an installation does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.small_recipe import write_small_run
from tests.tiny_text import train_tokenizer

ROOT = Path(__file__).parents[1]
ROOMS = ("recipes", "tools", "megatron_patches", "slurm", "checkpoints_conversion")
# Tracked files below the rooms that need not be installed.
LEFT_OUT: frozenset[str] = frozenset()

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
FOREIGN = 'raise RuntimeError("a module of the working folder was imported")\n'

# Small, but through the real stages: the text is the wheel's own.
DATA: dict[str, Any] = {
    "name": "small",
    "corpus": {
        "sources": {
            "addresses": {
                "kind": "monolingual",
                "path": "recipes/data/demo_text/monolingual/addresses.csv.gz",
                "language": "en",
                "license": "CC0-1.0",
            }
        }
    },
    "pack": {"components": {"monolingual": {"kind": "text"}}},
    "mix": {"components": {"monolingual": {"share": 1, "max_epochs": 100}}},
}


def tracked() -> set[str]:
    """Files of the working tree that git tracks or would track, links among them, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    return {name for name in names if name and os.path.lexists(ROOT / name)}


def copy_tree(destination: Path) -> Path:
    """A copy of the working tree without what git ignores."""
    for name in tracked():
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return destination


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command in `folder`."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def build(tree: Path, kind: str, out: Path) -> Path:
    """Builds `sdist` or `wheel` of a tree, as `python -m build --no-isolation` does."""
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


def installed_names(wheel: Path) -> set[str]:
    """Files that a wheel installs, its metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy_tree(folder / "tree"), "wheel", folder / "dist")


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel: Path) -> None:
    rooms = {f"emma/{name}" for name in tracked() if name.startswith(tuple(f"{room}/" for room in ROOMS))}
    own = {name for name in tracked() if name.startswith("emma/") and not Path(ROOT, name).is_symlink()}
    assert installed_names(wheel) == (rooms | own) - LEFT_OUT


def test_a_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build(copy_tree(tmp_path / "tree"), "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() or member.isdir() for member in archive), (
            "links break where they lead outside"
        )
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    second = build(tree, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(second) as other:
        assert installed_names(wheel) == installed_names(second)
        assert all(one.read(name) == other.read(name) for name in installed_names(wheel))
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_lock_gives_what_every_extra_asks_for() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {"torch", "convert", "train", "eval", "corpus", "sweep", "sign", "dev", "docs"}
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*project["dependencies"], *lines]):
        if requirement.name != "emma-recipes":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert set(project["optional-dependencies"]) - extras == {"all", "bench", "gpu", "wandb"}


class Environment:
    """A virtual environment in which commands run as a user's shell would start them."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        venv.create(folder, with_pip=True, symlinks=True)
        (self.packages,) = folder.glob("lib/python*/site-packages")

    def run(self, *command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program of this environment in a folder."""
        hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        variables["PATH"] = f"{self.bin}{os.pathsep}{variables['PATH']}"
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]], cwd=cwd, env=variables, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def pip_install(self, *arguments: str) -> None:
        """Installs; skips the test where no package index is reachable."""
        command = ("python", "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
        done = self.run(*command, *arguments, cwd=self.bin, check=False)
        if done.returncode and "No matching distribution found" in done.stderr:
            pytest.skip(f"no package index is reachable: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr

    def borrow(self, *folders: str) -> None:
        """Adds other folders of packages after this environment's own."""
        (self.packages / "zz_borrowed.pth").write_text("".join(f"{folder}\n" for folder in folders))


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install emma-recipes`, without extras."""
    environment = Environment(tmp_path_factory.mktemp("light"))
    environment.pip_install("--constraint", str(ROOT / "requirements.lock"), str(wheel))
    return environment


@pytest.fixture
def with_train(tmp_path: Path) -> Environment:
    """An environment without emma that has what `[train]` brings: the packages that these tests run with."""
    environment = Environment(tmp_path / "environment")
    environment.borrow(*(folder for folder in sys.path if folder.endswith("site-packages")))
    return environment


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A user's folder whose packages have our rooms' names."""
    folder = tmp_path / "folder of a user"
    for name in ("emma", *ROOMS):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(FOREIGN)
    return folder


def write_small(folder: Path) -> str:
    """A run of ten steps in `folder`, with its tokenizer; the path of its file."""
    train_tokenizer(folder / "tokenizer", 512)
    path = write_small_run(folder / "small", DATA, folder / "tokenizer")
    return str(path.relative_to(folder))


def prepare(environment: Environment, run: str, folder: Path) -> None:
    """The data side of a run, from raw text to the mix, with worker processes where there are any."""
    environment.run("emma", "plan", run, cwd=folder)
    environment.run("emma", "corpus", "build", run, "--workers", "2", cwd=folder)
    environment.run("emma", "pack", "run", run, "--workers", "2", cwd=folder)
    environment.run("emma", "mix", "build", run, cwd=folder)


def imported(environment: Environment, name: str, cwd: Path) -> bool:
    """Whether a Python of the environment can import a module."""
    return environment.run("python", "-P", "-c", f"import {name}", cwd=cwd, check=False).returncode == 0


@pytest.mark.slow
def test_the_data_stages_need_no_torch(light: Environment, foreign: Path) -> None:
    assert not imported(light, "torch", foreign)
    assert not any(imported(light, room, foreign) for room in ROOMS)
    light.run("emma", "plan", "demo", cwd=foreign)
    light.run("emma", "corpus", "build", "demo", cwd=foreign)
    tokenizer = ("-m", "emma.tools.demo.tokenizer", "demo/corpus", "demo/tokenizer")
    light.run("python", "-P", *tokenizer, cwd=foreign)
    light.run("emma", "pack", "run", "demo", cwd=foreign)
    light.run("emma", "mix", "build", "demo", cwd=foreign)
    mix = json.loads((foreign / "demo/mix/demo/mix.json").read_text())
    assert mix["samples"] == 300 * 8
    light.run("emma", "release", "corpus", "demo", "demo/released", cwd=foreign)
    assert (foreign / "demo/released/README.md").is_file()
    light.run("emma", "mix", "verify", "demo", cwd=foreign)
    plots = light.run("emma", "corpus", "stats", "demo", "--plots", cwd=foreign, check=False)
    assert plots.returncode == 2 and "pip install 'emma-recipes[corpus]'" in plots.stderr, plots.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("train", "demo"), "train"),
        (("plan", "demo", "--simulate"), "train"),
        (("convert", "hf-to-megatron", "somewhere", "elsewhere"), "convert"),
    ],
)
def test_a_command_without_its_extra_says_which(
    light: Environment, foreign: Path, command: Sequence[str], extra: str
) -> None:
    done = light.run("emma", *command, cwd=foreign, check=False)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'emma-recipes[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_editable_installation_needs_no_torch_either(
    light: Environment, foreign: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "environment")
    environment.pip_install("--no-deps", "--editable", str(copy_tree(tmp_path / "clone")))
    environment.borrow(str(light.packages))
    prepare(environment, write_small(foreign), foreign)
    assert not any(imported(environment, name, foreign) for name in ("torch", *ROOMS))
    found = environment.run("python", "-P", "-c", "import emma; print(emma.__file__)", cwd=foreign).stdout
    assert found.strip() == str(tmp_path / "clone/emma/__init__.py")


@pytest.mark.slow
def test_training_from_the_wheel(with_train: Environment, wheel: Path, foreign: Path) -> None:
    with_train.pip_install("--no-deps", str(wheel))
    run = write_small(foreign)
    prepare(with_train, run, foreign)
    done = with_train.run("emma", "train", run, cwd=foreign)
    assert "finished at step 10" in done.stdout


@pytest.mark.slow
def test_all_processes_are_of_the_clone_that_is_installed(
    with_train: Environment, foreign: Path, tmp_path: Path
) -> None:
    """Clone A is installed; in clone B any module of ours that is imported raises."""
    clone = copy_tree(tmp_path / "A")
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "A")
    other = tmp_path / "B"
    shutil.copytree(clone, other, symlinks=True)
    for package in ("emma", *ROOMS):
        (other / package / "__init__.py").write_text(FOREIGN)
    git(other, "commit", "--quiet", "--all", "--message", "B")

    with_train.pip_install("--no-deps", "--no-build-isolation", "--editable", str(clone))
    run = write_small(other)
    prepare(with_train, run, other)
    with_train.run("emma", "train", run, "parallelism.tensor=2", "cluster.gpus_per_node=2", cwd=other)
    environment = json.loads((other / "small/runs/small/environment.json").read_text())
    assert environment["commit"] == git(clone, "rev-parse", "HEAD") != git(other, "rev-parse", "HEAD")
