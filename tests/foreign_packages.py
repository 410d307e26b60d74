"""Packages of our names in a working folder, as another clone or a user's own project has them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_foreign_packages"]

_NAMES = ("emma", "emma/tools", "tools", "slurm", "recipes", "megatron_patches", "checkpoints_conversion")


def write_foreign_packages(folder: Path) -> None:
    """Writes packages that raise when a process started in `folder` imports them."""
    for name in _NAMES:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} of the working folder')\n")
