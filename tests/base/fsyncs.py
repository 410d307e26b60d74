"""What reaches the disk, and in which order: records real fsyncs and renames."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["record_fsyncs"]


def record_fsyncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The list that grows by (`fsync`, path of the descriptor) and (`rename`, new path) as they happen."""
    events: list[tuple[str, str]] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        events.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def rename(source: Path, target: Path) -> None:
        real_rename(source, target)
        events.append(("rename", str(target)))

    def replace(source: Path, target: Path) -> None:
        real_replace(source, target)
        events.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", replace)
    return events
