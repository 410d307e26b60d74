"""The GPUs of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from emma.base.errors import UserError
from emma.base.extras import install_command
from emma.recipes.devices import device_names

__all__ = ["Gpus", "device_of", "find_gpus"]


@dataclass(frozen=True)
class Gpus:
    """This machine's GPUs, all of one kind."""

    device: str
    count: int
    memory_gib: float | None


def find_gpus() -> Gpus:
    """This machine's GPUs.

    Raises:
        UserError: there is none, `recipes/devices.yaml` does not list it, or Transformer Engine is missing.
    """
    from importlib.util import find_spec

    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "no GPU: this benchmark measures training on NVIDIA GPUs, and torch sees none (`emma doctor` tells more). "
            "Fix: run it on a machine with one, or add --dry-run to see what would run"
        )
    if find_spec("transformer_engine") is None:
        raise UserError(f"transformer_engine is not installed. Fix: {install_command('transformer_engine')}")
    name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / 2**30
    return Gpus(device_of(name), torch.cuda.device_count(), memory)


def device_of(name: str) -> str:
    """Name in `recipes/devices.yaml` of a GPU as CUDA names it, e.g. `NVIDIA H100 80GB HBM3` → `h100`.

    Raises:
        UserError: the table has no such device.
    """
    # Longest name first: a GH200 is not an H200.
    for known in sorted(device_names(), key=len, reverse=True):
        if known in name.lower().replace(" ", "_").split("_") or known in name.lower():
            return known
    raise UserError(f"{name}: not in recipes/devices.yaml, so no peak to compare with; add it there")
