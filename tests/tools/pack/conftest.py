"""A tokenizer and settings for packing small inputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.recipes.schema.data import Pack
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import run
from emma.tools.pack.certificate import cache_folder
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_text import BEGIN, END, train_tokenizer

MakeSettings = Callable[..., PackSettings]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> TokenizerFile:
    return TokenizerFile(Tokenizer(path=str(tokenizer_folder), begin_of_text=BEGIN, end_of_text=END), 512)


@pytest.fixture(autouse=True)
def like_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small inputs of these tests are packed as large ones are."""
    monkeypatch.setattr(run, "LITTLE", -1)


@pytest.fixture
def make_settings(tmp_path: Path, tokenizer: TokenizerFile) -> MakeSettings:
    """Settings for one component `web`, with inputs and options as given."""

    def make(
        inputs: list[Path] | None, store: str = "store", kind: str = "text", **pack: Any
    ) -> PackSettings:
        component: dict[str, Any] = {"kind": kind}
        if inputs is not None:
            component["inputs"] = [str(path) for path in inputs]
        section = Pack.model_validate({"components": {"web": component}, "engine": "tokenizers", **pack})
        return PackSettings(section, tokenizer, tmp_path / "corpus", tmp_path / store, "0" * 64)

    return make


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates of this test alone: those of an engine that a test makes wrong must not be kept. The reference's are
    taken over."""
    folder = tmp_path / "cache" / "certificates"
    folder.mkdir(parents=True)
    for path in (cache_folder() / "certificates").glob("tokenizers-*.json"):
        shutil.copy(path, folder)
    monkeypatch.setenv("EMMA_CACHE", str(tmp_path / "cache"))
