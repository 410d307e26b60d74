"""What a release folder holds: a model or a dataset, told apart by its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.base.manifest import MANIFEST_NAME

__all__ = ["CORPUS_STAGE", "Kind", "release_kind"]

type Kind = Literal["model", "dataset"]
"""Kinds of repository, in the Hub's words."""

CORPUS_STAGE = "release.corpus"
"""Stage in the manifest of a corpus's release folder."""


def release_kind(folder: Path) -> Kind:
    """What a release folder holds.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    manifest = folder / MANIFEST_NAME
    corpus = manifest.is_file() and read_json(manifest).get("stage") == CORPUS_STAGE
    return "dataset" if corpus else "model"
