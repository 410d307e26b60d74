"""Which source a run records, wherever it is called from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import emma
from emma.tools.runs.environment import _gpus, environment, source_commit
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import launch_command
from tests.small_recipe import small_recipe

AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *AUTHOR, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one commit, whose `emma/` is tracked."""
    (tmp_path / "emma").mkdir()
    (tmp_path / "emma" / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


def test_a_checkout_names_its_commit_and_says_when_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert source_commit(checkout / "emma") == commit
    (checkout / "emma" / "__init__.py").write_text("changed = True\n")
    assert source_commit(checkout / "emma") == f"{commit}-dirty"


@pytest.mark.parametrize("place", [".venv/lib/python3.12/site-packages/emma", "vendored/emma"])
def test_an_installation_inside_another_checkout_does_not_take_its_commit(checkout: Path, place: str) -> None:
    installed = checkout / place
    shutil.copytree(checkout / "emma", installed)
    assert source_commit(installed) is None
    git(checkout, "add", "--force", ".")
    assert source_commit(installed) is None, "tracked, but as a part of another project"


def test_an_installation_at_the_top_of_another_checkout_is_not_tracked_by_it(tmp_path: Path) -> None:
    (tmp_path / "emma").mkdir()
    (tmp_path / "emma" / "__init__.py").write_text("")
    assert source_commit(tmp_path / "emma") is None, "no checkout at all"
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "First")
    assert source_commit(tmp_path / "emma") is None


def test_the_variables_of_a_git_hook_do_not_lead_elsewhere(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    git(elsewhere, "init", "--quiet")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    assert source_commit(checkout / "emma") == commit


def test_a_run_names_the_package_that_runs(tmp_path: Path) -> None:
    facts = environment(small_recipe(tmp_path))
    assert Path(facts["package"]) == Path(emma.__file__).resolve().parent
    assert facts["commit"] == source_commit(Path(facts["package"]))


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_ranks_never_look_for_modules_in_the_working_directory(tmp_path: Path, launcher: str) -> None:
    recipe = small_recipe(tmp_path, [f"cluster.launcher={launcher}"])
    command = launch_command(recipe, RunFolder(recipe.run_folder), "logs")
    modules = [index for index, word in enumerate(command) if word == "-m"]
    assert modules and all(command[index - 1] == "-P" for index in modules)
    assert command[-3:-1] == ["-m", "emma.tools.training.worker"]


def test_a_command_that_this_user_may_not_run_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where PATH names a folder of another user."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _gpus() == []
