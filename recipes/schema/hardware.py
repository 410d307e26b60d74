"""The `precision` and `cluster` sections."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section
from emma.recipes.schema.slurm import Slurm

__all__ = ["Cluster", "Precision"]


class Precision(Section):
    """Number formats of the forward and backward pass."""

    name: str
    """Name of the recipe file, e.g. `bf16`."""
    compute: Literal["fp32", "bf16"] = "bf16"
    """Format of weights and activations outside FP8 matrix products."""
    fp8: Literal["tensorwise", "delayed", "blockwise", "mxfp8"] | None = None
    """FP8 scaling of matrix products: current scaling per tensor, delayed scaling, blocks of 128, or MXFP8
    (Blackwell). None: no FP8."""
    fp8_format: Literal["hybrid", "e4m3"] = "hybrid"
    """`hybrid` is E4M3 forward and E5M2 backward."""
    fp8_params: bool = False
    """Keep weights in FP8 between steps, so that they are gathered in FP8."""
    first_last_layers_bf16: int = Field(0, ge=0)
    """Layers at each end that stay in BF16 under FP8 (not with `delayed`)."""
    grad_reduce_fp32: bool = True
    """Accumulate and reduce gradients in FP32."""

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.fp8 is not None and self.compute != "bf16":
            raise ValueError(f"fp8: {self.fp8} goes with compute: bf16, not {self.compute}")
        if self.fp8 is None and (self.fp8_params or self.first_last_layers_bf16):
            raise ValueError(
                "fp8_params and first_last_layers_bf16 do nothing without fp8; remove them or set fp8"
            )
        if self.fp8 == "delayed" and self.first_last_layers_bf16:
            raise ValueError(
                "Megatron refuses first_last_layers_bf16 with fp8: delayed; use tensorwise or set it to 0"
            )
        if self.fp8 == "blockwise" and self.fp8_params:
            raise ValueError("fp8_params is not supported with fp8: blockwise; set it to false")
        return self


class Cluster(Section):
    """The machine: what a node has and how jobs reach it."""

    later: ClassVar[frozenset[str]] = frozenset({"network"})

    name: str
    """Name of the recipe file, e.g. `h100_64`."""
    nodes: int = Field(1, gt=0)
    """Number of nodes."""
    gpus_per_node: int = Field(gt=0)
    """Ranks per node: one per GPU; without GPUs, the number of processes."""
    device: Literal["h100", "h200", "gh200", "a100", "b200", "cpu", "mi250x", "mi300x", "mi300a"]
    """Kind of device, which determines memory, peak speed and supported formats. AMD's can be planned and their scripts
    be rendered; training on them is refused until it has been proven."""
    memory_gib: float | None = Field(None, gt=0)
    """Usable memory per device in GiB; default: as in `recipes/devices.yaml`."""
    host_memory_gib: float | None = Field(None, gt=0)
    """Memory of a node outside its GPUs in GiB, for all its ranks; default: not checked."""
    launcher: Literal["torchrun", "srun"] = "torchrun"
    """What starts the ranks: `torchrun` on one machine, `srun` under Slurm."""
    network: Literal["infiniband", "slingshot", "efa"] | None = None
    """Network between nodes, whose settings (`recipes/networks.yaml`) every rank gets; default: none."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every rank on this cluster (network interface, NCCL settings, ...); they take precedence
    over the network's."""
    slurm: Slurm = Field(default_factory=Slurm)
    """How jobs are submitted here."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.gpus_per_node
