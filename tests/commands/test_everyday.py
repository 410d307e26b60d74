"""Everyday mistakes: each message holds what to do instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import emma
from tests.small_recipe import DATA, write_small_run
from tests.tiny_text import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a working folder holds: a recipe, a tokenizer, raw files of several kinds, and folders of other stages."""
    place = tmp_path_factory.mktemp("everyday")
    source = {"kind": "monolingual", "path": "raw/table.jsonl", "license": "CC0-1.0", "language": "eng_Latn"}
    run = write_small_run(
        place, {**DATA, "corpus": {"sources": {"web": source}}}, train_tokenizer(place / "tokenizer")
    )
    run.write_text(run.read_text().replace("path: raw", f"path: {place}/raw"))
    (place / "raw").mkdir()
    (place / "raw" / "table.jsonl").write_text("id,text\n1,some words\n")
    (place / "raw" / "empty.jsonl").touch()
    for name in ("hf", "megatron/iter_0000000", "runs/trained", "page"):
        (place / name).mkdir(parents=True)
    (place / "hf" / "config.json").write_text("{}")
    (place / "hf" / "model.safetensors").touch()
    (place / "hf" / "tokenizer.json").touch()
    (place / "runs" / "trained" / "recipe.yaml").write_text(run.read_text())
    return place


PACK = ("pack", "run", "small.yaml", "paths.store=s", "--workers", "1")

MISTAKES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "typo in a recipe's file": (
        ("pack", "run", "smal.yaml"),
        ["smal.yaml: no such recipe file; did you mean `small.yaml`?"],
    ),
    "typo in a run's folder": (
        ("report", "run", "runs/traind"),
        ["runs/traind: no such run folder; did you mean `runs/trained`?"],
    ),
    "typo in the folder above it": (
        ("report", "run", "rusn/trained"),
        ["rusn/trained: no such run folder; did you mean `runs/trained`?"],
    ),
    "a command of another name": (
        ("convert", "export", "runs/trained"),
        ["No such command 'export'. Choose one of extend-vocabulary, hf-to-megatron, ", "megatron-to-hf"],
    ),
    "typo in a command": (("slurm", "site", "inti"), ["Did you mean `emma slurm site init`?"]),
    "a wrong section on the command line": (
        ("mix", "plan", "small.yaml", "parallel.tensor=2"),
        ["command line: parallel: unknown key. Fix: did you mean `parallelism`?"],
    ),
    "a path of nothing": (("report", "run", "zz/qq"), ["there is no zz. Fix: ", "`emma recipe list`"]),
    "a folder that is no run": (("pack", "run", "."), ["has no recipe.yaml. Fix: name a run folder"]),
    "dashes before a key": (
        ("mix", "build", "small.yaml", "--paths.mix=x"),
        ["No such option", "paths.mix=VALUE"],
    ),
    "spaces around =": (("mix", "build", "small.yaml", "paths.mix", "=", "x"), ["without spaces"]),
    "a file for the corpus": (
        (*PACK, "paths.corpus=small.yaml"),
        ["small.yaml: a file. Fix: let paths.corpus name"],
    ),
    "CSV named .jsonl, packed": (
        (*PACK, "data.pack.components.monolingual.inputs=[raw/table.jsonl]"),
        ["table.jsonl:1: not valid JSON", "if the file is CSV", "name it .csv"],
    ),
    "CSV named .jsonl, built": (
        (*("corpus", "build", "small.yaml", "paths.corpus=c", "--workers", "1"), "data.corpus.sources.web.path=raw/table.jsonl"),
        ["table.jsonl: line 1: not valid JSON", "if the file is CSV", "name it .csv"],
    ),
    "an empty file": (
        (*PACK, "data.pack.components.monolingual.inputs=[raw/empty.jsonl]"),
        ["component monolingual: no document is left of 0 records. Fix: ", "remove s/monolingual"],
    ),
    "evaluation of a Megatron checkpoint": (
        ("evaluate", "run", "megatron", "--output", "e"),
        ["megatron: neither a model folder", "Fix: export its checkpoint with `emma convert megatron-to-hf"],
    ),
    "held-out text of another kind": (
        ("evaluate", "run", "hf", "--text", "runs", "--output", "e"),
        ["no held-out text. Fix: name a folder that `emma corpus build` has written"],
    ),
    "conversion the wrong way": (
        ("convert", "megatron-to-hf", "hf", "o"),
        ["hf: a Hugging Face model already", "`emma convert hf-to-megatron`"],
    ),
    "conversion the other wrong way": (
        ("convert", "hf-to-megatron", "megatron", "o"),
        ["holds no Hugging Face model. Fix: ", "`emma convert megatron-to-hf`"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_holds_the_fix(mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments, words = MISTAKES[mistake]
    shutil.rmtree("s", ignore_errors=True)  # what was begun from other input is refused
    before = {path for path in folder.rglob("*") if not path.is_relative_to(folder / "s")}
    answer = emma(*arguments)
    assert answer.code == 2, answer.out + answer.err
    assert "Traceback" not in answer.err and answer.err.lower().count("error: ") == 1
    for word in words:
        assert word in answer.err, answer.err
    left = {path for path in folder.rglob("*") if not path.is_relative_to(folder / "s")} - before
    assert all(
        any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir() for path in left
    )


def test_a_page_for_which_a_folder_stands_names_the_folder(tmp_path: Path) -> None:
    from emma.base.files import write_text
    from emma.base.system_errors import explain

    (tmp_path / "page").mkdir()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "page", "x")
    assert str(explain(caught.value)).startswith(f"{tmp_path / 'page'}: is a folder; a file is expected")


def test_a_start_from_a_folder_without_checkpoints_says_what_to_name(folder: Path) -> None:
    from emma.base.errors import UserError
    from emma.tools.runs.checkpoints import resolve_start

    with pytest.raises(
        UserError, match=r"hf \(none at all\)\. Fix: name a run, or the folder that holds its iter_"
    ):
        resolve_start(str(folder / "hf"), None)


def test_slurm_that_does_not_answer_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emma.slurm.query import SlurmError, run_slurm

    command = tmp_path / "squeue"
    command.write_text(
        "#!/bin/sh\necho 'squeue: fatal: Could not establish a configuration source' >&2\nexit 1\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SlurmError, match=r"configuration source\. Fix: run this on a login node"):
        run_slurm(["squeue"])
    command.write_text("#!/bin/sh\necho 'invalid account' >&2\nexit 1\n")
    with pytest.raises(SlurmError, match=r"^squeue: invalid account$"):
        run_slurm(["squeue"])


def test_an_older_python_is_named() -> None:
    code = "import sys; sys.version_info = (3, 11, 7); sys.version = '3.11.7 (x)'; import emma.cli; emma.cli.main()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: emma needs Python 3.12 or 3.13, but {sys.executable} is 3.11.7\n"
