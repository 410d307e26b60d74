"""A missing package: the extra that brings it is named, and other missing modules stay faults."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from concurrent.futures import wait
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emma import cli
from emma.base.errors import UserError
from emma.base.extras import explain_missing, extras_with, install_command, need
from emma.base.processes import process_pool

ROOT = Path(__file__).parents[2]
ROOMS = ("recipes", "tools", "megatron_patches", "slurm", "checkpoints_conversion", "emma")
# Modules whose package comes with a listed one (Jinja2 and pydantic depend on them).
COMES_WITH = {
    "markupsafe": "jinja2",
    "pydantic_core": "pydantic",
    "ruamel": "ruamel-yaml",
    "iso639": "python-iso639",
}
# Needed only to rebuild a committed table; the module says so.
FOR_ONE_TABLE = {"langcodes", "language_data"}


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Importing `module` fails as if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)


def third_party_imports() -> dict[str, set[str]]:
    """Top-level modules imported anywhere in the rooms, except the standard library's and ours, with the files."""
    found = defaultdict(set)
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for name in names:
                    module = name.partition(".")[0]
                    if module != "emma" and module not in sys.stdlib_module_names:
                        found[module].add(str(path.relative_to(ROOT)))
    return found


def test_every_package_that_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    everywhere = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    unknown = {
        module: sorted(files)
        for module, files in third_party_imports().items()
        if canonicalize_name(COMES_WITH.get(module, module)) not in everywhere
        and not extras_with(module)
        and module not in FOR_ONE_TABLE
    }
    # vLLM and COMET pin packages of their own, so no extra can bring them; COMET's environment has PyYAML.
    assert unknown.keys() <= {"vllm", "yaml"}
    assert unknown.get("yaml", []) in ([], ["tools/evaluation/quality/comet_worker.py"])


def test_the_installed_metadata_is_that_of_this_checkout() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra, lines in project["optional-dependencies"].items():
        for requirement in map(Requirement, lines):
            if requirement.name != "emma-recipes":
                assert extra in extras_with(requirement.name), "reinstall: rm .venv/.ready; make setup"


@pytest.mark.parametrize(
    ("noun", "module", "extra"),
    [
        ("train", "torch", "train"),
        ("train", "megatron.training", "train"),
        ("convert", "torch", "convert"),
        ("evaluate", "torch", "eval"),
        ("evaluate", "lm_eval", "eval"),
        ("corpus", "fasttext", "corpus"),
        ("slurm", "optuna", "sweep"),
        ("release", "transformers", "convert"),
    ],
)
def test_a_command_names_the_extra_that_it_misses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], noun: str, module: str, extra: str
) -> None:
    top = module.partition(".")[0]
    without(monkeypatch, top)

    def command(**_: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(cli, "cli", command)
    monkeypatch.setattr(sys, "argv", ["emma", noun, "demo"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert f"needs `{top}`" in (said := capsys.readouterr().err)
    assert f"pip install 'emma-recipes[{extra}]'" in said


def test_a_missing_module_of_this_project_stays_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"emma\.tools\.nothing"), explain_missing():
        import emma.tools.nothing  # noqa: F401


def test_a_missing_part_of_an_installed_package_stays_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sacrebleu\.nothing"), explain_missing():
        import sacrebleu.nothing  # noqa: F401


def _import_transformer_engine(number: int) -> int:
    import transformer_engine  # noqa: F401

    return number


@pytest.mark.skipif(
    find_spec("transformer_engine") is not None, reason="Transformer Engine is installed here"
)
def test_the_message_arrives_from_another_process() -> None:
    with (
        pytest.raises(UserError, match=r"needs `transformer_engine`.*emma-recipes\[gpu\]"),
        explain_missing(),
        process_pool(2, preload=["emma.base.files"]) as pool,
    ):
        tasks = [pool.submit(_import_transformer_engine, number) for number in range(2)]
        wait(tasks)
        tasks[0].result()


def test_work_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    need("corpus", "figures", "matplotlib")
    without(monkeypatch, "matplotlib")
    with pytest.raises(UserError, match=r"figures: needs `matplotlib`.*emma-recipes\[corpus\]"):
        need("corpus", "figures", "matplotlib")


def test_the_first_extra_is_named_where_the_command_has_none() -> None:
    assert install_command("torch", "eval") == "pip install 'emma-recipes[eval]'"
    assert install_command("torch") == "pip install 'emma-recipes[torch]'"
    assert install_command("matplotlib", "train") == "pip install 'emma-recipes[corpus]'"
