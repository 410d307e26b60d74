"""What the patches' conditions ask about the machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from dataclasses import dataclass

__all__ = ["Machine", "nvml_device_count"]


@dataclass(frozen=True)
class Machine:
    """GPUs that torch can use, and the libraries that change which of Megatron's code paths run.

    Args:
        gpus: number of GPUs visible to this process.
        transformer_engine: Transformer Engine is installed.
        apex: NVIDIA apex is installed.
    """

    gpus: int
    transformer_engine: bool
    apex: bool

    @classmethod
    def from_torch(cls) -> Machine:
        """Asks torch, whose answer is the one that counts when training."""
        import torch

        return cls._with_gpus(torch.cuda.device_count() if torch.cuda.is_available() else 0)

    @classmethod
    def from_outside(cls) -> Machine:
        """Asks torch if it is already imported, otherwise the driver, without importing or initialising anything."""
        if "torch" in sys.modules:
            return cls.from_torch()
        return cls._with_gpus(_visible(nvml_device_count()))

    @classmethod
    def _with_gpus(cls, gpus: int) -> Machine:
        return cls(
            gpus=gpus,
            transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
            apex=importlib.util.find_spec("apex") is not None,
        )


def nvml_device_count() -> int:
    """Returns the number of NVIDIA GPUs the driver knows, 0 without a driver. Does not initialise CUDA."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if nvml.nvmlInit_v2() != 0:
        return 0
    try:
        count = ctypes.c_uint(0)
        return count.value if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0
    finally:
        nvml.nvmlShutdown()


def _visible(devices: int) -> int:
    """Applies CUDA_VISIBLE_DEVICES: entries after the first invalid one are ignored, as CUDA does."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return devices
    visible = 0
    for entry in filter(None, (part.strip() for part in listed.split(","))):
        if entry.lstrip("-").isdigit() and not 0 <= int(entry) < devices:
            break
        visible += 1
    return min(visible, devices)
