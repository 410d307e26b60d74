"""The compiled dataset helpers of Megatron's wheel."""

from __future__ import annotations

import sys

import pytest

from emma.megatron_patches import PatchError
from emma.megatron_patches.dataset_helpers import use_prebuilt_helpers
from tests.megatron_patches.small_run import train_without
from tests.ranks import run_ranks, start_ranks


def sample_index() -> list[list[int]]:
    """Three documents of 5 tokens in order, samples of 4 tokens, through Megatron's compiled helpers."""
    import numpy
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import compile_helpers

    compile_helpers()
    sizes, order = numpy.full(3, 5, dtype=numpy.int32), numpy.arange(3, dtype=numpy.int32)
    index: list[list[int]] = helpers.build_sample_idx(sizes, order, 4, 1, 15, True, 1).tolist()
    return index


def test_pretrain_exits_without_the_patch() -> None:
    (outcome,) = start_ranks(train_without, 1, "prebuilt-dataset-helpers", patched=False).outcomes(timeout=60)
    assert outcome.exit_code == 1
    assert "Failed to compile the C++ dataset helper functions" in outcome.output


def test_the_helpers_of_the_wheel_work() -> None:
    assert run_ranks(sample_index, 1) == [[[0, 0], [0, 4], [1, 3], [2, 2]]]


def test_missing_helpers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core.datasets.helpers_cpp", None)
    monkeypatch.setitem(sys.modules, "megatron.core.datasets", sys)  # the package itself would import torch
    with pytest.raises(PatchError, match="install megatron-core from its wheel"):
        use_prebuilt_helpers()
