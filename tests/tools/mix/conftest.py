"""A small token store, packed once, and settings for mixes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.recipes.schema.data import Mix
from emma.tools.mix.prepare import MixSettings
from tests.tiny_mix import TinyMix, make_tiny_mix

MakeSettings = Callable[..., MixSettings]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyMix:
    return make_tiny_mix(tmp_path_factory.mktemp("tiny"), samples=40, sequence_length=64)


@pytest.fixture
def make_settings(tiny: TinyMix, tmp_path: Path) -> MakeSettings:
    """Settings of the tiny mix with other values of `data.mix`, in its own folder."""

    def make(
        name: str = "mix", samples: int = 40, length: int = 64, store: Path | None = None, **mix: Any
    ) -> MixSettings:
        value = {**tiny.data.mix.model_dump(), **mix}
        folder = tmp_path / "mix" / name
        return MixSettings(
            Mix.model_validate(value), name, folder, store or tiny.store, samples, length, "0" * 64
        )

    return make


@pytest.fixture
def own_store(tiny: TinyMix, tmp_path: Path) -> Path:
    """A copy of the store for tests to corrupt."""
    return Path(shutil.copytree(tiny.store, tmp_path / "store"))
