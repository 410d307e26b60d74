"""Devices on which training was compared with a run that is known to be right."""

from __future__ import annotations

from emma.base.errors import RecipeError
from emma.recipes.devices import device
from emma.recipes.schema import Recipe

__all__ = ["refuse_unproven"]


def refuse_unproven(recipe: Recipe) -> None:
    """Refuses to train on a device on which no run was ever compared with another.

    Raises:
        RecipeError: it is AMD's.
    """
    if device(recipe.cluster.device).platform == "rocm":
        raise RecipeError(
            "cluster.device",
            f"training on `{recipe.cluster.device}` is not proven: it needs ROCm's builds of torch and Transformer Engine "
            "and RCCL in place of NCCL, and no run was compared there with one on NVIDIA's",
            "plan and render for it (`emma plan`, `--dry-run`), and train on h100, h200, gh200, a100 or b200",
        )
