"""Other layouts of a run on its cluster: which fit, how fast they should be, and why the others do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from emma.base.errors import RecipeError
from emma.recipes.checks import check_combination
from emma.recipes.schema import Recipe
from emma.tools.plan.memory import MARGIN, estimate_memory, host_memory, memory_limit
from emma.tools.plan.throughput import expected_throughput

__all__ = ["Alternative", "alternatives", "check_fits"]

_TENSOR = (1, 2, 4, 8)
_PIPELINE = (1, 2, 4)
_CONTEXT = (1, 2)
_MICRO = (1, 2, 4)


@dataclass(frozen=True)
class Alternative:
    """One layout of a run."""

    tensor: int
    pipeline: int
    context: int
    micro: int
    recompute_layers: int
    """Recomputed layers per pipeline stage; 0: none."""
    memory_gib: float | None
    """Estimate for the fullest rank; None if the layout is impossible."""
    tokens_per_second_per_gpu: float | None
    """Expected speed; None if the layout is impossible or no figure is known."""
    reason: str | None
    """Why it cannot be used; None if it can."""

    def overrides(self, recipe: Recipe) -> list[str]:
        """What differs from the recipe's layout, as overrides for the command line."""
        wanted = {
            "tensor": self.tensor,
            "sequence": self.tensor > 1,
            "pipeline": self.pipeline,
            "context": self.context,
            "virtual_pipeline": 1,
            "recompute": "full" if self.recompute_layers else "none",
            "recompute_layers": self.recompute_layers or None,
        }
        have = recipe.parallelism.model_dump()
        changed = [f"parallelism.{key}={_yaml(value)}" for key, value in wanted.items() if have[key] != value]
        return changed + ([f"batch.micro={self.micro}"] if recipe.batch.micro != self.micro else [])


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower()


def alternatives(recipe: Recipe) -> list[Alternative]:
    """Combinations of a few tensor, pipeline, context and micro-batch sizes, fastest first.

    A layout that does not fit recomputes as few layers as it needs to. Context parallelism with masked documents, which
    has not run on GPUs yet, comes behind what needs none. Impossible and too large ones come last, with the reason.
    """
    found = [
        _alternative(recipe, *sizes) for sizes in itertools.product(_TENSOR, _PIPELINE, _CONTEXT, _MICRO)
    ]
    masked = recipe.batch.document_masking
    return sorted(
        found,
        key=lambda a: (
            a.reason is not None,
            masked and a.context > 1,
            -(a.tokens_per_second_per_gpu or 0),
            a.memory_gib or 0,
        ),
    )


def check_fits(recipe: Recipe, origin: str | None = None) -> None:
    """Refuses a recipe whose estimated memory exceeds the card's, less the margin.

    Args:
        recipe: a checked recipe.
        origin: where its layout was set, for the message.

    Raises:
        RecipeError: it does not fit; the fix names the fastest layout that does, as overrides. Or a node's memory
            would not hold its ranks while they save or load.
    """
    memory, limit = estimate_memory(recipe), memory_limit(recipe)
    if limit is None or memory.total <= limit:
        _check_host(recipe)
        return
    best = next((alternative for alternative in alternatives(recipe) if alternative.reason is None), None)
    fix = "use more or larger GPUs, or another precision: no layout of this cluster fits"
    if best is not None:
        fix = (
            f"{' '.join(best.overrides(recipe))} is the fastest layout that fits ({best.memory_gib:.1f} GiB)"
        )
    raise RecipeError(
        "parallelism",
        f"a GPU needs {memory.total:.1f} GiB (weights {memory.weights:.1f}, gradients {memory.gradients:.1f}, optimizer "
        f"{memory.optimizer:.1f}, activations {memory.activations:.1f}, the rest "
        f"{memory.logits + memory.runtime + memory.allocator:.1f}), {limit:.1f} may be used",
        fix,
        origin,
    )


def _check_host(recipe: Recipe) -> None:
    have, need = recipe.cluster.host_memory_gib, host_memory(recipe)
    if have is None or need.total <= have * (1 - MARGIN):
        return
    raise RecipeError(
        "cluster.host_memory_gib",
        f"the ranks of a node need {need.total:.0f} GiB while they {need.when} a checkpoint ({need.checkpoint:.0f} for "
        f"their shares of it, {need.processes:.0f} for {recipe.cluster.gpus_per_node} ranks), {have:g} GiB are there",
        "use more nodes, fewer optimizer instances, or nodes with more memory",
    )


def _alternative(recipe: Recipe, tensor: int, pipeline: int, context: int, micro: int) -> Alternative:
    memory: float | None = None
    reason: str | None = None
    layers = 0
    speed: float | None = None
    for layers, candidate in _with_recomputation(recipe, tensor, pipeline, context, micro):
        try:
            check_combination(candidate, lambda key: None)
        except RecipeError as error:
            reason = f"{error.key}: {error.problem}"
            break
        memory, limit = estimate_memory(candidate).total, memory_limit(candidate)
        if limit is None or memory <= limit:
            reason = None
            throughput = expected_throughput(candidate)
            speed = throughput.tokens_per_second_per_gpu if throughput else None
            break
        reason = f"needs {memory:.1f} GiB with {layers or 'no'} layers recomputed, {limit:.1f} may be used"
    return Alternative(tensor, pipeline, context, micro, layers, memory, speed, reason)


def _with_recomputation(
    recipe: Recipe, tensor: int, pipeline: int, context: int, micro: int
) -> Iterator[tuple[int, Recipe]]:
    """The layout with 0, 1, 2, ... recomputed layers per stage."""
    for layers in range(recipe.model.layers // pipeline + 1):
        changes = {
            "tensor": tensor,
            "pipeline": pipeline,
            "context": context,
            "sequence": tensor > 1,
            "virtual_pipeline": 1,
            "recompute": "full" if layers else "none",
            "recompute_layers": layers or None,
        }
        parallelism = recipe.parallelism.model_copy(update=changes)
        batch = recipe.batch.model_copy(update={"micro": micro})
        yield layers, recipe.model_copy(update={"parallelism": parallelism, "batch": batch})
