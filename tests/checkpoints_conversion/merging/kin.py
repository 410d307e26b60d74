"""Small models that descend from one base, and recipes that merge them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from emma.recipes.schema.merge import Merge
from tests.checkpoints_conversion.tiny_models import save_llama, save_tokenizer


def change(folder: Path, edit: Any) -> Path:
    """Replaces the tensors of a folder by `edit(name, tensor)`; returns the folder."""
    for path in folder.glob("*.safetensors"):
        tensors = {name: edit(name, tensor).contiguous() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def descend(base: Path, folder: Path, seed: int, size: float = 0.2) -> Path:
    """A copy of a model with noise on every weight, of `size` times the tensor's deviation; returns the folder."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.float()
        deviation = values.std() if values.numel() > 1 else values.abs()
        return (values + size * deviation * torch.randn(values.shape, generator=generator)).to(tensor.dtype)

    return change(folder, edit)


def make_kin(root: Path, **changes: Any) -> Path:
    """`base`, and `one` and `two` that descend from it; returns the folder that holds them."""
    save_tokenizer(save_llama(root / "base", **changes))
    for seed, name in enumerate(("one", "two"), start=1):
        descend(root / "base", root / name, seed)
    return root


def recipe(root: Path, method: str, **values: Any) -> Merge:
    """A merge of `one` and `two` (weights 1 and 0.7), with the base where the method has one."""
    task = method not in ("linear", "slerp")
    weights = {} if method == "slerp" else {"weight": 0.7}
    given: dict[str, Any] = {
        "name": "test",
        "method": method,
        "models": [{"path": str(root / "one")}, {"path": str(root / "two"), **weights}],
    }
    if task:
        given["base"] = {"path": str(root / "base")}
    return Merge.model_validate(given | values)
