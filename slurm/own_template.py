"""Custom job templates, stored beside the recipe that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emma.recipes.load import load_with_origins
from emma.recipes.schema import Recipe

__all__ = ["load_run"]


def load_run(run: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A run's recipe. A template named in a file is looked up beside that file, then in the working folder.

    Raises:
        UserError: as `recipes.load.load_recipe`.
    """
    recipe, composed = load_with_origins(run, overrides)
    slurm = recipe.cluster.slurm
    origin = composed.origin(("cluster", "slurm", "template"))
    if not slurm.template.endswith(".j2") or origin is None:
        return recipe
    beside = Path(origin.rpartition(":")[0]).parent / slurm.template
    template = beside if beside.is_file() else Path(slurm.template)
    slurm = slurm.model_copy(update={"template": str(template.absolute())})
    cluster = recipe.cluster.model_copy(update={"slurm": slurm})
    return recipe.model_copy(update={"cluster": cluster})
