"""The table of devices."""

from __future__ import annotations

from typing import get_args

import pytest

from emma.base.errors import UserError
from emma.recipes.devices import device, device_names, matmul_format
from emma.recipes.load import load_section
from emma.recipes.schema.hardware import Cluster


def test_the_table_knows_every_device_that_a_cluster_can_name() -> None:
    assert set(device_names()) == set(get_args(Cluster.model_fields["device"].annotation))


def test_peaks_follow_the_precision() -> None:
    h100 = device("h100")
    assert h100.peak_tflops("bf16") == 989.4
    assert h100.peak_tflops(load_section("precision", "bf16")) == 989.4
    assert h100.peak_tflops(load_section("precision", "fp8_tensorwise")) == 1978.9
    assert h100.peak_tflops(load_section("precision", "fp32")) == 66.9
    assert device("a100").peak_tflops("fp8") is None
    assert device("cpu").peak_tflops("fp32") is None


def test_formats_of_matrix_products() -> None:
    names = {"fp32": "fp32", "bf16": "bf16", "fp8_delayed": "fp8", "fp8_mxfp8": "fp8"}
    for name, expected in names.items():
        assert matmul_format(load_section("precision", name)) == expected


def test_unknown_device() -> None:
    with pytest.raises(UserError, match=r"`h300`.*h100"):
        device("h300")
