"""Weight gradients added into the gradient buffer without apex."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu import require_gpus
from tests.megatron_patches import small_run
from tests.megatron_patches.conftest import Reference
from tests.megatron_patches.small_run import furthest, train, train_without
from tests.ranks import RanksError, run_ranks

UNFUSED = "--no-gradient-accumulation-fusion"


def train_fused(*flags: str) -> tuple[list[tuple[int, float]], int]:
    """A training run whose layers, Megatron's own here, add into the buffer; its losses, and how many products did."""
    from megatron.core.tensor_parallel import layers

    extension, calls = layers.fused_weight_gradient_mlp_cuda, []
    plain = extension.wgrad_gemm_accum_fp32

    def counted(*values: Any) -> None:
        calls.append(values[2].shape)
        plain(*values)

    extension.wgrad_gemm_accum_fp32 = counted
    small_run.FLAGS = small_run.FLAGS.replace(UNFUSED, "")
    return train(*flags), len(calls)


def train_fused_without_the_patch() -> None:
    small_run.FLAGS = small_run.FLAGS.replace(UNFUSED, "")
    train_without("accumulated-gradient")


def test_megatron_refuses_without_the_patch() -> None:
    with pytest.raises(RanksError, match="fused_weight_gradient_mlp_cuda"):
        run_ranks(train_fused_without_the_patch, 1, patched=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_are_those_of_gradients_added_afterwards(ranks: int, reference: Reference) -> None:
    tensor = ["--tensor-model-parallel-size", "2", "--sequence-parallel"] if ranks == 2 else []
    resume = ["--load", str(reference.folder), "--train-iters", "6", "--override-opt-param-scheduler"]
    *_, (losses, calls) = run_ranks(train_fused, ranks, *tensor, *resume)
    assert furthest(losses, reference.second_half[:2]) < 5e-6
    assert calls == 2 * 4 * (4 * 4 + 1), "steps × micro-batches × weights"


def products(kinds: list[tuple[str, str]], device: str) -> list[float]:
    """Largest error of `accumulate` relative to the exact sum, for (dtype of activations, dtype of the buffer)."""
    import torch

    from emma.megatron_patches.accumulated_gradient import accumulate

    torch.manual_seed(0)
    errors = []
    for given, kept in kinds:
        rows = torch.randn(48, 24, device=device).to(getattr(torch, given))
        gradients = torch.randn(48, 16, device=device).to(getattr(torch, given))
        buffer = torch.randn(16, 24, device=device).to(getattr(torch, kept))
        exact = buffer.double() + gradients.double().t() @ rows.double()
        accumulate(rows, gradients, buffer)
        errors.append(float((buffer.double() - exact).abs().max() / exact.abs().max()))
    return errors


KINDS = [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]


def test_sums_of_16_bit_products_are_kept_in_the_buffers_precision() -> None:
    same, mixed, rounded = products(KINDS, "cpu")
    assert same < 1e-6 and mixed < 1e-6 and 1e-4 < rounded < 1e-2


@pytest.mark.gpu
def test_a_gpu_adds_16_bit_products_in_fp32() -> None:
    require_gpus()
    same, mixed, rounded = products(KINDS, "cuda")
    print(f"relative errors: FP32 {same:.1e}, BF16 into FP32 {mixed:.1e}, BF16 into BF16 {rounded:.1e}")
    assert same < 1e-3 and mixed < 1e-5 and rounded < 1e-2


def test_torch_has_the_product_that_a_gpu_needs() -> None:
    import torch

    assert "dtype_out" in torch.ops.aten.addmm.overloads()
