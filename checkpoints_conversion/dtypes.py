"""The number formats of weights, as named in recipes, in safetensors files, and in torch."""

from __future__ import annotations

import torch

from emma.base.errors import UserError

__all__ = ["DTYPES", "SAFETENSORS_NAMES", "dtype_name", "parse_dtype"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAFETENSORS_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """`fp32`, `bf16`, or `fp16` → torch's type.

    Raises:
        UserError: another name.
    """
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` → `bfloat16`, as in configuration files."""
    return str(dtype).removeprefix("torch.")
