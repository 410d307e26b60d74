"""What a run costs: time, GPU-hours, energy, CO2, and the checkpoints' share."""

from __future__ import annotations

from dataclasses import dataclass

from emma.recipes.devices import device
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.parameters import total_parameters
from emma.tools.arithmetic.traffic import (
    Traffic,
    checkpoint_traffic,
    copied_bytes,
    planning_seconds,
    state_bytes,
    weight_bytes,
)

__all__ = [
    "Assumptions",
    "CheckpointCost",
    "Energy",
    "Time",
    "checkpoint_bytes",
    "checkpoint_cost",
    "expected_energy",
    "expected_time",
]

_GIB = 2**30


@dataclass(frozen=True)
class Assumptions:
    """What the recipe does not say; options of `emma plan` override it."""

    pue: float = 1.2
    """Power usage effectiveness: power of the site divided by power of its nodes. This project's choice,
    between new HPC sites (1.05) and the average data centre (about 1.5)."""
    grid_g_per_kwh: float = 450.0
    """CO2 per kWh of electricity, g: about the world average. National grids range from below 50 to 700."""
    storage_gb_per_s: float = 5.0
    """Speed at which all ranks together write a checkpoint, 10^9 bytes/s. This project's choice: a modest
    parallel file system. NVIDIA reports 23 (a 920 GB checkpoint in 40 s)."""
    host_copy_gb_per_s: float = 10.0
    """Speed at which a rank copies its share to host memory before saving in the background, 10^9 bytes/s. This
    project's choice, not measured: pageable copies over PCIe 5, and copies in memory that 8 ranks share."""


@dataclass(frozen=True)
class Time:
    """Duration of a run."""

    seconds_per_step: float
    """One optimizer step, without validation and checkpoints."""
    days: float
    """All steps and blocking saves, without interruptions, queues and validation."""
    gpu_hours: float
    """`days` times the number of GPUs, in hours."""


@dataclass(frozen=True)
class Energy:
    """Energy of a run, with every board and host at maximum power."""

    megawatt_hours: float
    """Including the site's overhead (PUE)."""
    co2_tonnes: float
    """From the grid's carbon intensity."""


@dataclass(frozen=True)
class CheckpointCost:
    """Checkpoints of a run."""

    gib: float
    """One checkpoint: weights, main weights, both moments."""
    saves: int
    """Number of saves in the run."""
    kept: int
    """The most that are on disk at once."""
    disk_gib: float
    """Space for those and for the one being written."""
    seconds: float
    """Time of one save that training waits for: writing or, in the background, copying."""
    planning_seconds: float
    """The same before that, while the ranks agree on who saves what."""
    share_of_time: float | None
    """Blocking saves as a share of the run; None without a speed."""
    minutes_between: float | None
    """Training time between two saves, the most that an interruption loses; None without a speed."""
    traffic: Traffic
    """What a save and a resume ask of a rank and of a node."""


def checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of one checkpoint: weights, main weights, both moments."""
    # Megatron writes the weights in the compute format (FP8 ones as BF16), and the optimizer's states in
    # FP32, whatever their format in memory.
    return total_parameters(recipe.model) * (weight_bytes(recipe) + state_bytes(recipe))


def checkpoint_cost(
    recipe: Recipe, seconds_per_step: float | None, assumptions: Assumptions
) -> CheckpointCost:
    """Size, number and cost of the run's checkpoints."""
    checkpoint, steps = recipe.checkpoint, recipe.schedule.steps
    size = checkpoint_bytes(recipe)
    saves = -(-steps // checkpoint.interval)
    kept = saves
    if checkpoint.keep is not None:
        milestones = steps // checkpoint.keep_every if checkpoint.keep_every else 0
        kept = min(saves, milestones + checkpoint.keep)
    seconds = size / 1e9 / assumptions.storage_gb_per_s
    if checkpoint.asynchronous:
        # Each rank copies its share to host memory; writing overlaps training.
        seconds = copied_bytes(recipe) / 1e9 / assumptions.host_copy_gb_per_s
    planning = planning_seconds(recipe)
    between = None if seconds_per_step is None else checkpoint.interval * seconds_per_step
    return CheckpointCost(
        gib=size / _GIB,
        saves=saves,
        kept=kept,
        disk_gib=(kept + 1) * size / _GIB,
        seconds=seconds,
        planning_seconds=planning,
        share_of_time=None if between is None else (seconds + planning) / (between + seconds + planning),
        minutes_between=None if between is None else between / 60,
        traffic=checkpoint_traffic(recipe, assumptions.storage_gb_per_s),
    )


def expected_time(recipe: Recipe, tokens_per_second_per_gpu: float, assumptions: Assumptions) -> Time:
    """Duration of the run at a speed."""
    gpus = recipe.cluster.world_size
    step = recipe.tokens_per_step / (tokens_per_second_per_gpu * gpus)
    checkpoints = checkpoint_cost(recipe, step, assumptions)
    save = checkpoints.planning_seconds + checkpoints.seconds
    seconds = recipe.schedule.steps * step + checkpoints.saves * save
    return Time(seconds_per_step=step, days=seconds / 86400, gpu_hours=seconds / 3600 * gpus)


def expected_energy(recipe: Recipe, time: Time, assumptions: Assumptions) -> Energy | None:
    """Energy and CO2 of the run; None for a device whose power is not in the table."""
    kind = device(recipe.cluster.device)
    if kind.power_w is None or kind.host_power_w is None:
        return None
    watts = (kind.power_w + kind.host_power_w) * assumptions.pue
    megawatt_hours = time.gpu_hours * watts / 1e6
    return Energy(
        megawatt_hours=megawatt_hours, co2_tonnes=megawatt_hours * assumptions.grid_g_per_kwh / 1000
    )
