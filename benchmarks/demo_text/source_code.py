"""Source files under permissive licences, from Debian's development packages and npm."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_files"]


def read_files(folder: Path, patterns: list[str]) -> list[tuple[str, str]]:
    """Paths (relative to `folder`) and texts of the files that match one of the glob patterns, sorted by path."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return [(path.relative_to(folder).as_posix(), path.read_text("utf-8")) for path in sorted(paths)]
