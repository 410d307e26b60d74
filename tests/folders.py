"""Comparing what stages wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["content"]


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; not of manifests, which hold times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != "manifest.json"
    }
