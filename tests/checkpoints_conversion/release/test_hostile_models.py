"""Hugging Face folders that would run code, through every command that takes one."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.tools.inspection.models import model_options
from tests.checkpoints_conversion.release.released_run import STEPS
from tests.command_line import emma
from tests.hostile import MODELS
from tests.imports import ROOT


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that a payload makes; no test may find it."""
    yield tmp_path / "attacked"
    assert not (tmp_path / "attacked").exists()


def refused(*arguments: object) -> str:
    answer = emma(*map(str, arguments))
    lines = answer.err.strip().splitlines()
    assert answer.code != 0, arguments
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    return lines[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_command_refuses(
    name: str, made: Recipe, run: Path, release: Path, marker: Path, tmp_path: Path
) -> None:
    export = run / "hf" / f"step-{STEPS}"
    model = Path(shutil.copytree(made.run_folder.parents[1] / "base", tmp_path / "model"))
    for folder in (export, model, release):
        MODELS[name](folder, marker)
    code = "custom code" if name != "pytorch_model.bin" else "pytorch_model.bin"
    assert code in refused("convert", "hf-to-megatron", model, tmp_path / "out")
    refused("convert", "hf-to-megatron", model, tmp_path / "out", "--dry-run")
    refused("convert", "verify", model, model)
    refused("convert", "inspect", model)
    refused("evaluate", "run", model)
    refused("evaluate", "run", model, "--tier", "core")
    refused("evaluate", "run", run)
    refused("release", "model", run, tmp_path / "out")
    answer = emma("release", "verify", str(release), "--generate")  # lists every fault in a line of its own
    assert answer.code == 1 and code in answer.err and "Traceback" not in answer.err
    with pytest.raises(UserError):
        model_options(model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["{", "[]", '{"model": {"type": "Nonsense"}}', "[" * 100_000])
def test_a_tokenizer_that_is_none(broken: str, made: Recipe, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made.run_folder.parents[1] / "base", tmp_path / "model"))
    (model / "tokenizer.json").write_text(broken)
    corpus = tmp_path / "corpus" / "split" / "monolingual" / "eng_Latn"
    corpus.mkdir(parents=True)
    refused("evaluate", "run", model, "--text", tmp_path / "corpus")


def test_transformers_is_never_called_without_these_options() -> None:
    """Each `from_pretrained` of the project takes its options from `tools/inspection/models.py`."""
    places, wrong = 0, []
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT).parts
        if inside[0] in ("tests", "benchmarks", "emma", "site", "build") or inside[0].startswith("."):
            continue  # emma/ links to the rooms beside it
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = node.func.attr
            if (
                name in ("load", "loads")
                and ast.unparse(node.func.value)
                in (
                    "pickle",
                    "torch",
                    "dill",
                    "joblib",
                )
                and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            ):
                wrong.append(f"{path}:{node.lineno}")
            if name == "from_pretrained":
                places += 1
                spread = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
                if not any(text.startswith(("model_options(", "tokenizer_options(")) for text in spread):
                    wrong.append(f"{path}:{node.lineno}")
    assert places > 5 and wrong == []
