"""Parameters compared bit for bit across formats."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from emma.checkpoints_conversion.dtypes import dtype_name
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.safetensors_files import tensor_bytes
from emma.checkpoints_conversion.weights import Weights, blocks

__all__ = ["TensorResult", "compare_tensors"]


@dataclass(frozen=True)
class TensorResult:
    """Comparison of one parameter.

    Attributes:
        name: under transformers' name.
        equal: whether every bit is the same.
        sha256_a: SHA-256 of the first one's bytes, in the compared type.
        sha256_b: SHA-256 of the second one's bytes.
        dtype: compared type.
        max_abs_delta: largest difference between two values, in FP32.
        numbers_different: number of values that differ.
    """

    name: str
    equal: bool
    sha256_a: str
    sha256_b: str
    dtype: str
    max_abs_delta: float
    numbers_different: int


def _compare(a: Weights, b: Weights, name: str) -> TensorResult:
    dtype = a.dtype(name)
    digests = hashlib.sha256(), hashlib.sha256()
    largest, different = 0.0, 0
    for one, other in zip(blocks([a], name, dtype), blocks([b], name, dtype), strict=True):
        digests[0].update(tensor_bytes(one))
        digests[1].update(tensor_bytes(other))
        integers = torch.int16 if dtype.itemsize == 2 else torch.int32
        # As bits, so that -0.0 differs from 0.0 and a NaN equals itself.
        unlike = one.view(integers) != other.view(integers)
        if count := int(unlike.sum()):
            different += count
            largest = max(largest, (one.float() - other.float()).abs().nan_to_num(torch.inf).max().item())
    hashes = digests[0].hexdigest(), digests[1].hexdigest()
    return TensorResult(name, hashes[0] == hashes[1], *hashes, dtype_name(dtype), largest, different)


def compare_tensors(
    a: Weights, b: Weights, *, threads: int = 2, done: Callable[[], Any] = lambda: None
) -> list[TensorResult]:
    """Compares all parameters of two models with the same shape, block by block.

    Args:
        a: one model.
        b: the other model, with parameters of the same sizes and types (`rounded_alike`).
        threads: parameters compared at once.
        done: called after each parameter.
    """

    def one(name: str) -> TensorResult:
        result = _compare(a, b, name)
        done()
        return result

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, parameter_shapes(a.shape)))
