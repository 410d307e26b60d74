"""Merges of models, streamed: Hugging Face folders and Megatron checkpoints, in any combination."""

from __future__ import annotations

from pathlib import Path

from emma.base.files import read_json
from emma.base.manifest import MANIFEST_NAME

__all__ = ["STAGE", "is_merge"]

STAGE = "convert.merge"
"""Stage in the manifest of what `emma convert merge` writes."""


def is_merge(folder: Path) -> bool:
    """Whether `emma convert merge` wrote a folder. Needs no torch."""
    path = folder / MANIFEST_NAME
    found = read_json(path) if path.is_file() else None
    return isinstance(found, dict) and found.get("stage") == STAGE
