"""Ten kinds of bad input to the demo's stages, through a user's commands: one clear message, nothing half-written."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.checkpoints_conversion.tiny_models import save_llama
from tests.command_line import emma
from tests.small_recipe import write_small_run
from tests.tiny_text import documents, train_tokenizer

LINES = [json.dumps({"text": text, "lang": "en"}) for text in documents("eng_Latn", 40)]
OUTPUTS = ("corpus", "store", "mix", "runs", "imported", "exported")


class Project:
    """A folder with a raw text, a recipe that reads it, and the demo's commands on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw.jsonl"
        self.raw.write_text("\n".join(LINES) + "\n")
        data = {
            "name": "small",
            "corpus": {
                "sources": {
                    "raw": {
                        "kind": "monolingual",
                        "path": str(root / "raw.jsonl*"),
                        "format": "jsonl",
                        "language_column": "lang",
                        "license": "CC0-1.0",
                    }
                },
                "split": {"share": 0.1, "floor": 2, "min_train": 4},
                "filters": {"monolingual": {"max_repeated_ngram_share": None}},
            },
            "pack": {"components": {"monolingual": {"kind": "text"}}},
            "mix": {
                "components": {"monolingual": {"share": 1, "max_epochs": 1000}},
                "validation": {"min_tokens": 1},
            },
        }
        self.recipe = str(write_small_run(root, data, train_tokenizer(root / "tokenizer")))

    def build(self, *stages: str) -> None:
        """Runs stages that must succeed."""
        for stage in stages:
            answer = emma(*stage.split(), self.recipe)
            assert answer.code == 0, answer.err

    def held(self) -> dict[str, bytes]:
        """Every file that the stages wrote."""
        files = (path for name in OUTPUTS for path in sorted((self.root / name).rglob("*")))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files if path.is_file()}

    def refuses(self, *arguments: str) -> str:
        """The one message of a command that must fail and leave everything as it was."""
        before = self.held()
        answer = emma(*arguments)
        assert answer.code in (1, 2)
        assert "Traceback" not in answer.err
        messages = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, answer.err
        assert self.held() == before
        return messages[0]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("EMMA_PROGRESS", "0")
    return Project(tmp_path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project as far as its mix; tests copy its files, or change and restore them."""
    project = Project(tmp_path_factory.mktemp("packed"))
    project.build("corpus build", "pack run", "mix build")
    return project


def test_truncated_gzip(project: Project) -> None:
    whole = gzip.compress(project.raw.read_bytes())
    project.raw.unlink()
    (project.root / "raw.jsonl.gz").write_bytes(whole[:-20])
    message = project.refuses("corpus", "build", project.recipe)
    assert "raw.jsonl.gz" in message
    assert "fetch the file again" in message


def test_line_that_is_not_json(project: Project) -> None:
    project.raw.write_text("\n".join([*LINES[:6], '{"text": "cut', *LINES[6:]]))
    assert "raw.jsonl: line 7: " in project.refuses("corpus", "build", project.recipe)


def test_missing_key(project: Project) -> None:
    project.raw.write_text("\n".join([*LINES[:3], '{"body": "x", "lang": "en"}', *LINES[3:]]))
    message = project.refuses("corpus", "build", project.recipe)
    assert "raw.jsonl: line 4: no key `text`" in message


def test_invalid_utf8(project: Project) -> None:
    project.raw.write_bytes("\n".join(LINES[:2]).encode() + b'\n{"text": "caf\xe9", "lang": "en"}\n')
    message = project.refuses("corpus", "build", project.recipe)
    assert "raw.jsonl: line 3" in message
    assert "UTF-8" in message


def test_unknown_language(project: Project) -> None:
    project.raw.write_text("\n".join([*LINES[:4], '{"text": "What is it?", "lang": "qqx"}', *LINES[4:]]))
    message = project.refuses("corpus", "build", project.recipe)
    assert "raw.jsonl: line 5: " in message
    assert "`qqx`" in message
    assert "nearest" in message


def test_empty_corpus(project: Project) -> None:
    project.raw.write_text("")
    message = project.refuses("corpus", "build", project.recipe)
    assert "raw" in message
    assert "no document" in message or "empty" in message


def test_token_id_beyond_the_vocabulary(packed: Project) -> None:
    message = packed.refuses("train", packed.recipe, "model.vocab_size=300")
    assert "300" in message
    shard = next((packed.root / "store").rglob("*.bin"))
    good = shard.read_bytes()
    shard.write_bytes(good[:10] + b"\xff\xff" + good[12:])
    try:
        answer = emma("pack", "verify", packed.recipe)
        assert answer.code == 1
        assert f"{shard.name}" in answer.out + answer.err
        assert "65535" in answer.out + answer.err
        assert "vocabulary" in answer.out + answer.err
    finally:
        shard.write_bytes(good)


def test_store_whose_shard_was_cut(packed: Project) -> None:
    shard = next((packed.root / "store").rglob("*.bin"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-100])
    try:
        for command in (
            ("mix", "build", packed.recipe, "data.mix.seed=7", "--replace"),
            ("train", packed.recipe),
        ):
            message = packed.refuses(*command)
            assert shard.name in message
            assert str(len(good)) in message or f"{len(good):,}" in message
    finally:
        shard.write_bytes(good)


def test_checkpoint_without_its_metadata(project: Project) -> None:
    save_llama(project.root / "hf")
    imported, exported = project.root / "imported", project.root / "exported"
    assert emma("convert", "hf-to-megatron", str(project.root / "hf"), str(imported)).code == 0
    next(imported.rglob(".metadata")).unlink()
    message = project.refuses("convert", "megatron-to-hf", str(imported), str(exported))
    assert ".metadata" in message
    assert not exported.exists()


def test_base_model_of_another_shape(packed: Project) -> None:
    save_llama(packed.root / "hf")
    imported = packed.root / "other-shape"
    message = packed.refuses(
        "convert", "hf-to-megatron", str(packed.root / "hf"), str(imported), "--model", "tiny"
    )
    assert "hidden_size" in message or "layers" in message
    assert not imported.exists()
    assert emma("convert", "hf-to-megatron", str(packed.root / "hf"), str(imported)).code == 0
    message = packed.refuses("train", packed.recipe, "start.mode=weights", f"start.checkpoint={imported}")
    assert "layers" in message or "hidden_size" in message
    shutil.rmtree(imported)


def test_recipe_of_the_project_is_sound(packed: Project) -> None:
    """The control for the refusals above: nothing else is wrong with the project."""
    assert emma("pack", "verify", packed.recipe).code == 0
    assert emma("mix", "verify", packed.recipe).code == 0
    assert emma("train", packed.recipe, "--dry-run").code == 0
    assert YAML(typ="safe").load(Path(packed.recipe))["name"] == "small"
