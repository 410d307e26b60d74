"""Writes the files of a first run, and what they rest on, without replacing what somebody changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json, write_text

__all__ = ["read_state", "sha256_text", "write_files"]

FILES = ("data.yaml", "cluster.yaml", "run.yaml", "NEXT.md")
STATE = "init.json"
VERSION = 1


def read_state(folder: Path) -> dict[str, Any]:
    """What `emma init` noted of a folder.

    Raises:
        UserError: it did not write this folder.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file: `emma init` did not write {folder}. Fix: run `emma init {folder}` first"
        )
    state: dict[str, Any] = read_json(path)
    if state.get("version") != VERSION:
        raise UserError(
            f"{path}: version {state.get('version')} of another `emma`. Fix: run `emma init` again"
        )
    return state


def sha256_text(text: str) -> str:
    """Checksum of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_files(
    files: Mapping[str, str], state: Mapping[str, Any], folder: Path, *, overwrite: bool, again: bool = False
) -> list[str]:
    """Writes the files; returns a line for each.

    Args:
        files: their text by name.
        state: for `init.json`.
        folder: where they belong.
        overwrite: replace whatever is there.
        again: replace what `emma init` wrote itself and nobody changed.

    Raises:
        UserError: a file is there, or was changed; none is written then.
    """
    path = folder / STATE
    written = read_json(path)["files"] if path.is_file() else {}
    present = [name for name in FILES if (folder / name).exists()]
    changed = [
        name
        for name in present
        if sha256_text((folder / name).read_text(encoding="utf-8", errors="replace")) != written.get(name)
    ]
    if present and not again and not overwrite:
        raise UserError(
            f"{folder}: {', '.join(present)} would be overwritten. Fix: name another folder, or pass --overwrite"
        )
    if changed and not overwrite:
        raise UserError(
            f"{folder}: {', '.join(changed)} changed since `emma init` wrote it. Fix: pass --overwrite to replace it, or keep it "
            "and go on with NEXT.md"
        )
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    for name, content in files.items():
        before = (folder / name).read_text(encoding="utf-8", errors="replace") if name in present else None
        write_text(folder / name, content)
        said.append(
            f"{folder / name}: {'written' if before is None else 'as it was' if before == content else 'overwritten'}"
        )
    write_json(path, state)
    return said
