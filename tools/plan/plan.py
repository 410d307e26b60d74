"""The whole plan of a run, computed once for both text and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emma.recipes.devices import device
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.cost import (
    Assumptions,
    CheckpointCost,
    Energy,
    Time,
    checkpoint_cost,
    expected_energy,
    expected_time,
)
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.arithmetic.parameters import matmul_parameters, total_parameters
from emma.tools.plan.alternatives import Alternative, alternatives, check_fits
from emma.tools.plan.memory import HostMemory, Memory, estimate_memory, host_memory, memory_limit
from emma.tools.plan.throughput import UNCERTAINTY, Throughput, expected_throughput

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """What a run takes."""

    recipe: Recipe
    parameters: int
    matmul_parameters: int
    flops_causal: float
    """FLOPs per token, attention counted causally."""
    flops_full: float
    """FLOPs per token, attention counted in full."""
    memory: Memory
    memory_limit_gib: float | None
    host_memory: HostMemory
    throughput: Throughput | None
    measured: bool
    """Whether the speed was given rather than estimated."""
    time: Time | None
    energy: Energy | None
    checkpoints: CheckpointCost
    assumptions: Assumptions
    alternatives: tuple[Alternative, ...]

    @property
    def microbatches(self) -> int:
        """Micro-batches per step and data-parallel rank."""
        return self.recipe.batch.global_ // (self.recipe.batch.micro * self.recipe.data_parallel)

    def to_dict(self) -> dict[str, Any]:
        """JSON of `emma plan --json`: sizes in GiB, times in the unit that their name gives."""
        recipe = self.recipe
        return {
            "run": recipe.name,
            "recipe_sha256": recipe.sha256,
            "model": recipe.model.name,
            "precision": recipe.precision.name,
            "device": recipe.cluster.device,
            "gpus": recipe.cluster.world_size,
            "parallelism": {**recipe.parallelism.model_dump(mode="json"), "data": recipe.data_parallel},
            "batch": {
                **recipe.batch.model_dump(mode="json", by_alias=True),
                "microbatches": self.microbatches,
            },
            "parameters": self.parameters,
            "matmul_parameters": self.matmul_parameters,
            "steps": recipe.schedule.steps,
            "tokens_per_step": recipe.tokens_per_step,
            "samples": recipe.total_samples,
            "tokens": recipe.total_tokens,
            "flops_per_token": {"causal": self.flops_causal, "full": self.flops_full},
            "flops": {
                "causal": self.flops_causal * recipe.total_tokens,
                "full": self.flops_full * recipe.total_tokens,
            },
            "memory_gib": {
                **asdict(self.memory),
                "total": self.memory.total,
                "limit": self.memory_limit_gib,
                "card": recipe.cluster.memory_gib or device(recipe.cluster.device).memory_gib,
            },
            "host_memory_gib": {
                **asdict(self.host_memory),
                "total": self.host_memory.total,
                "node": recipe.cluster.host_memory_gib,
            },
            "throughput": {**asdict(self.throughput), "assumptions": self.throughput.assumptions}
            if self.throughput
            else None,
            "throughput_measured": self.measured,
            "throughput_uncertainty": None if self.measured or self.throughput is None else UNCERTAINTY,
            "time": asdict(self.time) if self.time else None,
            "energy": asdict(self.energy) if self.energy else None,
            "checkpoints": asdict(self.checkpoints),
            "assumptions": asdict(self.assumptions),
            "alternatives": [
                {**asdict(a), "overrides": a.overrides(recipe) if a.reason is None else None}
                for a in self.alternatives
            ],
        }


def make_plan(
    recipe: Recipe,
    assumptions: Assumptions | None = None,
    measured: float | None = None,
    origin: str | None = None,
) -> Plan:
    """Plans a run.

    Args:
        recipe: a checked recipe.
        assumptions: what the recipe does not say; by default the project's own.
        measured: tokens per second and GPU, instead of the estimate.
        origin: where the layout was set, for the message of a refusal.

    Raises:
        RecipeError: the run does not fit into its devices' memory.
    """
    assumptions = assumptions or Assumptions()
    check_fits(recipe, origin)
    throughput = expected_throughput(recipe, measured)
    time = None
    if throughput is not None:
        time = expected_time(recipe, throughput.tokens_per_second_per_gpu, assumptions)
    length = recipe.batch.sequence_length
    return Plan(
        recipe=recipe,
        parameters=total_parameters(recipe.model),
        matmul_parameters=matmul_parameters(recipe.model),
        flops_causal=flops_per_token(recipe.model, length, "causal"),
        flops_full=flops_per_token(recipe.model, length, "full"),
        memory=estimate_memory(recipe),
        memory_limit_gib=memory_limit(recipe),
        host_memory=host_memory(recipe),
        throughput=throughput,
        measured=measured is not None,
        time=time,
        energy=expected_energy(recipe, time, assumptions) if time else None,
        checkpoints=checkpoint_cost(recipe, time.seconds_per_step if time else None, assumptions),
        assumptions=assumptions,
        # On a CPU, layouts are chosen for tests, not for memory or speed.
        alternatives=() if recipe.cluster.device == "cpu" else tuple(alternatives(recipe)),
    )
