"""The table of devices (`devices.yaml`): memory, peak speed, power."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.recipes.schema.section import Section

if TYPE_CHECKING:
    from emma.recipes.schema.hardware import Precision

__all__ = ["Device", "Format", "device", "device_names", "matmul_format"]

Format = Literal["fp32", "bf16", "fp8"]


class Device(Section):
    """A kind of device; values are None where nothing can be assumed (CPU)."""

    name: str
    """Value of `cluster.device`."""
    description: str
    """What it is, in words."""
    platform: Literal["cuda", "rocm", "cpu"] = "cuda"
    """What drives it; training is proven on CUDA and on CPUs."""
    memory_gib: float | None = Field(None, gt=0)
    """Total memory as CUDA reports it, in GiB."""
    peak_by_format: dict[Format, float] = Field(default_factory=dict, alias="peak_tflops")
    """Dense peak speed of matrix products in TFLOP/s, by number format; formats that are absent are not supported."""
    power_w: float | None = Field(None, gt=0)
    """Maximum power of the board, in W."""
    host_power_w: float | None = Field(None, ge=0)
    """Power of the node's other parts, per device, in W."""

    def peak_tflops(self, precision: Precision | Format) -> float | None:
        """Dense peak speed in TFLOP/s for a precision section or a format; None if the table has none.

        With FP8 this is the FP8 peak, although attention and the output layer run in BF16: MFU against it is the lower
        of the two figures in use.
        """
        return self.peak_by_format.get(precision if isinstance(precision, str) else matmul_format(precision))


def matmul_format(precision: Precision) -> Format:
    """Number format of the layers' matrix products under a precision section."""
    return "fp8" if precision.fp8 is not None else precision.compute


@cache
def _table() -> dict[str, Device]:
    rows = YAML(typ="safe").load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
    return {name: Device.model_validate({"name": name, **row}) for name, row in rows.items()}


def device_names() -> list[str]:
    """Known devices, in the order of the table."""
    return list(_table())


def device(name: str) -> Device:
    """The device of that name.

    Raises:
        UserError: there is no such device in the table.
    """
    if name not in _table():
        raise UserError(
            f"device `{name}`: not in recipes/devices.yaml; expected one of {', '.join(_table())}"
        )
    return _table()[name]
