"""One inspector for all formats: finds the checkpoint in a folder and says what is in it. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

from emma.base.errors import UserError
from emma.tools.inspection.checkpoints import holds_checkpoint, inspect_checkpoint
from emma.tools.inspection.findings import Inspection
from emma.tools.inspection.models import holds_model, inspect_model

__all__ = ["inspect_folder"]

_STEP = re.compile(r"iter_(\d{7,})")


def inspect_folder(folder: Path, step: int | None = None) -> Inspection:
    """Inspects a run folder, a folder of checkpoints, a checkpoint, a Hugging Face model, or a tokenizer.

    Args:
        folder: any of these.
        step: which of several checkpoints; by default the last one, complete or not.

    Raises:
        UserError: nothing of the kind is there, or no such step.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if step is None and holds_checkpoint(folder):
        return inspect_checkpoint(folder)
    root = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = {
        int(name[1]): path
        for path in root.iterdir()
        if (name := _STEP.fullmatch(path.name)) and path.is_dir()
    }
    if steps:
        chosen = max(steps) if step is None else step
        if chosen not in steps:
            raise UserError(f"{root}: no step {chosen}; there are {', '.join(map(str, sorted(steps)))}")
        found = inspect_checkpoint(steps[chosen])
        found.facts["steps"] = ", ".join(map(str, sorted(steps)))
        return found
    if step is not None:
        raise UserError(f"{folder}: no checkpoints iter_NNNNNNN in it, so --step {step} has no meaning")
    if holds_model(folder):
        return inspect_model(folder)
    raise UserError(
        f"{folder}: neither checkpoints (iter_NNNNNNN, .metadata, mp_rank_…) nor a Hugging Face model or tokenizer"
    )
