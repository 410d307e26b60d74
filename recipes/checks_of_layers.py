"""Which layers are recomputed, offloaded, overlapped or replayed, and together with what (`recipes/checks.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from emma.recipes.schema import Recipe

__all__ = ["kernels", "recomputation"]

Fault = tuple[str, str, str]
"""Key, problem, fix."""


def recomputation(recipe: Recipe) -> Iterator[Fault]:
    p = recipe.parallelism
    chunk = recipe.model.layers // (p.pipeline * p.virtual_pipeline)
    if p.recompute_layers is not None and p.recompute != "full":
        yield (
            "parallelism.recompute_layers",
            f"it goes with recompute: full, not {p.recompute}",
            "remove it or set recompute: full",
        )
    if p.recompute_layers is not None and p.recompute_layers > chunk:
        yield (
            "parallelism.recompute_layers",
            f"{p.recompute_layers} exceeds the {chunk} layers of a pipeline stage's model chunk",
            f"use at most {chunk}",
        )


def kernels(recipe: Recipe) -> Iterator[Fault]:
    """Recomputed parts, offloading, overlap and graphs: what Megatron 0.19.2 and a device can do."""
    p, on_cpu = recipe.parallelism, recipe.cluster.device == "cpu"
    if p.recompute_modules is not None and p.recompute != "selective":
        yield (
            "parallelism.recompute_modules",
            f"they go with recompute: selective, not {p.recompute}",
            "remove them or set recompute: selective",
        )
    for key in ("offload_layers", "overlap_tensor", "cuda_graphs"):
        if getattr(p, key) and on_cpu:
            yield (
                f"parallelism.{key}",
                "it needs Transformer Engine, so a GPU; the cluster is `cpu`",
                "remove it",
            )
    if p.offload_layers >= recipe.model.layers:
        yield (
            "parallelism.offload_layers",
            f"{p.offload_layers} of {recipe.model.layers} layers: the last stays on the device",
            f"use at most {recipe.model.layers - 1}",
        )
    if p.offload_layers and (p.pipeline > 1 or p.recompute != "none" or p.cuda_graphs):
        yield (
            "parallelism.offload_layers",
            "it cannot be combined with pipeline stages, recomputation or CUDA graphs",
            "choose one of them",
        )
    if p.overlap_tensor and not p.sequence:
        yield (
            "parallelism.overlap_tensor",
            "it overlaps the gathers and scatters of sequence parallelism, which is off",
            "set sequence to true and tensor to 2 or more",
        )
    if p.cuda_graphs and (recipe.batch.document_masking or p.recompute == "full"):
        yield (
            "parallelism.cuda_graphs",
            "a graph's shapes are fixed: it cannot follow documents of any length, nor whole layers computed twice",
            "set batch.document_masking to false and recompute to none or selective, or remove it",
        )
