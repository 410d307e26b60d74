"""A layer with a window that is given a mask of documents keeps both."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks


def _seen(window: int | None, length: int) -> list[list[bool]]:
    """Which positions a softmax of equal scores gives weight, with two documents of half the length each."""
    import torch
    from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.utils import attention_mask_func

    size = None if window is None else (window - 1, 0)
    softmax = FusedScaleMaskSoftmax(
        False, False, AttnMaskType.causal, False, attention_mask_func, True, None, size
    )
    document = torch.arange(length) // (length // 2)
    hidden = (document[:, None] != document) | torch.ones(length, length).triu(1).bool()
    probabilities = softmax(torch.zeros(1, 1, length, length), hidden[None, None])
    assert softmax.window_size == size  # put back
    return (probabilities[0, 0] > 0).tolist()


@pytest.mark.parametrize("window", [None, 3])
def test_documents_and_windows(window: int | None) -> None:
    (seen,) = run_ranks(_seen, 1, window, 12)
    expected = [
        [row // 6 == column // 6 and 0 <= row - column < (window or 12) for column in range(12)]
        for row in range(12)
    ]
    assert seen == expected


def test_without_the_patch_documents_see_each_other() -> None:
    (seen,) = run_ranks(_unpatched, 1, patched=False)
    assert seen[6][5]


def _unpatched() -> list[list[bool]]:
    from emma import megatron_patches
    from emma.megatron_patches import registry

    registry.MODULES = tuple(name for name in registry.MODULES if name != "window_mask")
    megatron_patches.apply()
    return _seen(3, 12)
