"""Checkpoints as a run with weights kept in FP8 leaves them, made on a CPU from those of a BF16 run."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete

# The weights that Transformer Engine holds in FP8: the layers' matrices.
FP8_KEYS = re.compile(r"decoder\.layers\.\S*linear_(qkv|proj|fc1|fc2)\.weight")


def to_e4m3(tensor: torch.Tensor) -> torch.Tensor:
    """What is left of a tensor after FP8 with one scaling factor (its largest value becomes 448)."""
    scale = 448.0 / tensor.abs().max().float().clamp(min=1e-30)
    return ((tensor.float() * scale).to(torch.float8_e4m3fn).float() / scale).to(tensor.dtype)


def change_tensors(folder: Path, pattern: re.Pattern[str], change: Any) -> list[str]:
    """Rewrites the stored blocks of a `torch_dist` checkpoint's tensors in place.

    Args:
        folder: the checkpoint.
        pattern: whole names of the tensors.
        change: block → block of the same type and sizes.

    Returns:
        The names of the tensors changed.
    """
    from torch.distributed.checkpoint import FileSystemReader

    changed = set()
    for index, info in FileSystemReader(folder).read_metadata().storage_data.items():
        if not pattern.fullmatch(index.fqn):
            continue
        path = folder / info.relative_path
        content = bytearray(path.read_bytes())
        archive = bytes(content[info.offset : info.offset + info.length])
        block = torch.load(io.BytesIO(archive), weights_only=True)
        old = _bytes(block)
        new = _bytes(change(block))
        assert len(old) == len(new)
        assert archive.count(old) == 1
        start = info.offset + archive.index(old)
        content[start : start + len(new)] = new
        path.write_bytes(content)
        changed.add(index.fqn)
    return sorted(changed)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def round_weights(run: Path, *steps: int) -> None:
    """Rounds the model's weights in checkpoints to FP8, and states it in the recipe."""
    for step in steps:
        folder = checkpoint_folder(run / "checkpoints", step)
        assert len(change_tensors(folder, FP8_KEYS, to_e4m3)) == 4
        (folder / "complete.json").unlink()
        mark_complete(folder, step=step)
    change_recipe(run, precision={"fp8": "tensorwise", "fp8_params": True})


def change_recipe(run: Path, **sections: Any) -> None:
    """Replaces sections of a run's resolved recipe."""
    path = run / "recipe.yaml"
    first, _, rest = path.read_text().partition("\n")
    values = YAML(typ="safe").load(rest) | sections
    with path.open("w") as handle:
        handle.write(first + "\n")
        YAML(typ="safe").dump(values, handle)
