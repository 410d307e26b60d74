"""How a first run is divided over its cluster, and how fast it is expected to be."""

from __future__ import annotations

from typing import Any

from emma.base.errors import RecipeError
from emma.recipes.checks import check_combination
from emma.recipes.load import load_section
from emma.recipes.schema import Recipe
from emma.recipes.schema.hardware import Cluster
from emma.recipes.schema.model import Model
from emma.recipes.schema.training import Parallelism
from emma.tools.adapt.recipes import Layout
from emma.tools.plan.alternatives import alternatives, check_fits
from emma.tools.plan.memory import estimate_memory, memory_limit
from emma.tools.plan.throughput import expected_throughput

__all__ = ["ALONE", "choose_layout", "sequence_length"]

ALONE = {"tensor": 1, "pipeline": 1, "context": 1, "sequence": False, "virtual_pipeline": 1}
"""One rank's layout."""


def choose_layout(parent: Recipe, model: Model, cluster: Cluster) -> tuple[Layout, float | None, int]:
    """The layout, expected tokens per second and GPU, and what the batch must be a multiple of.

    The parent's layout where it fits, else the fastest that does.

    Raises:
        RecipeError: none fits.
    """
    if cluster.device == "cpu":
        micro = parent.batch.micro if parent.cluster.device == "cpu" else 1
        ranks = cluster.world_size
        return (
            Layout(ALONE, micro, f"{ranks} process{'es' * (ranks > 1)}: data parallelism only."),
            None,
            micro * ranks,
        )
    unit = 8 * cluster.world_size
    batch = parent.batch.model_copy(
        update={"global_": max(1, 2048 // unit) * unit, "sequence_length": sequence_length(parent, model)}
    )
    changes: dict[str, Any] = {
        "cluster": cluster,
        "model": model,
        "precision": load_section("precision", "bf16"),
    }
    recipe = parent.model_copy(update={**changes, "batch": batch})
    if parent.cluster.device == "cpu":
        recipe = recipe.model_copy(update={"parallelism": Parallelism.model_validate(ALONE)})
    p, micro = recipe.parallelism, recipe.batch.micro
    why = f"{parent.name}'s layout, which fits"
    try:
        check_combination(recipe, lambda key: None)
        check_fits(recipe)
    except RecipeError as error:
        found = alternatives(recipe)
        best = next((one for one in found if one.reason is None), None)
        if best is None:
            nearest = min(
                (one for one in found if one.memory_gib), key=lambda one: one.memory_gib or 0, default=None
            )
            raise RecipeError(
                "cluster",
                f"no layout of {model.name} fits {cluster.world_size} × {cluster.device}: "
                + (f"at best a GPU {nearest.reason}" if nearest else error.problem),
                "take more or larger GPUs, or a smaller base (--cluster, --base)",
            ) from None
        p = p.model_copy(
            update={
                "tensor": best.tensor, "pipeline": best.pipeline, "context": best.context, "sequence": best.tensor > 1,
                "virtual_pipeline": 1, "recompute": "full" if best.recompute_layers else "none",
                "recompute_layers": best.recompute_layers or None,
            }
        )  # fmt: skip
        micro, why = best.micro, "The fastest layout that fits, by `emma plan`"
        recipe = recipe.model_copy(
            update={"parallelism": p, "batch": batch.model_copy(update={"micro": micro})}
        )
    throughput = expected_throughput(recipe)
    keys = (*ALONE, "recompute", "recompute_layers")
    values = {key: getattr(p, key) for key in keys}
    why += f": {estimate_memory(recipe).total:.1f} of {memory_limit(recipe) or 0:.1f} GiB a GPU."
    speed = throughput.tokens_per_second_per_gpu if throughput else None
    # The interleaved schedule takes its micro-batches in groups of the pipeline's size.
    groups = p.pipeline if p.virtual_pipeline > 1 else 1
    return Layout(values, micro, why), speed, micro * recipe.data_parallel * groups


def sequence_length(parent: Recipe, model: Model) -> int:
    """The parent's, but no longer than the model takes."""
    return min(parent.batch.sequence_length, model.max_position_embeddings)
