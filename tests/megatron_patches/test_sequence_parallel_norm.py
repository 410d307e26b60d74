"""Sequence parallelism over torch's RMSNorm."""

from __future__ import annotations

import pytest

from tests.megatron_patches.conftest import Reference
from tests.megatron_patches.small_run import furthest, train, train_without
from tests.ranks import RanksError, run_ranks

TWO_TENSOR_RANKS = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]


def norms(sequence_parallel: bool) -> list[tuple[str, bool]]:
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        tensor_model_parallel_size=2,
        sequence_parallel=sequence_parallel,
        normalization="RMSNorm",
        persist_layer_norm=False,
    )
    norm = WrappedTorchNorm(config, 8, eps=1e-5)
    return [(type(norm).__name__, getattr(norm.weight, "sequence_parallel", False))]


def train_with_unmarked_norms(*flags: str) -> list[tuple[int, float]]:
    """A training run in which the norms' gradients are not summed over the tensor-parallel ranks."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    new = WrappedTorchNorm.__new__

    def unmarked(*args: object, **kwargs: object) -> object:
        norm = new(*args, **kwargs)
        del norm.weight.sequence_parallel
        return norm

    WrappedTorchNorm.__new__ = staticmethod(unmarked)
    return train(*flags)


def test_the_model_cannot_be_built_without_the_patch() -> None:
    with pytest.raises(RanksError, match="sequence parallel not supported by torch LayerNorm"):
        run_ranks(train_without, 2, "sequence-parallel-norm", *TWO_TENSOR_RANKS, patched=False)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_weights_are_marked_where_their_gradients_have_to_be_summed(sequence_parallel: bool) -> None:
    assert run_ranks(norms, 1, sequence_parallel) == [[("RMSNorm", sequence_parallel)]]


def test_losses_are_those_of_one_rank_and_the_mark_is_what_makes_them(reference: Reference) -> None:
    resume = [
        *TWO_TENSOR_RANKS,
        "--load",
        str(reference.folder),
        "--train-iters",
        "6",
        "--override-opt-param-scheduler",
    ]
    *_, marked = run_ranks(train, 2, *resume)
    assert furthest(marked, reference.second_half[:2]) < 5e-6
    *_, unmarked = run_ranks(train_with_unmarked_norms, 2, *resume)
    assert furthest(unmarked, reference.second_half[:2]) > 3e-5
