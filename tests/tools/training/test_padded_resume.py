"""Resuming where gradient buckets are padded, with Megatron's real loop on the CPU: the losses must be the uninterrupted
ones to the last digit."""

from __future__ import annotations

from collections.abc import Callable

from emma.tools.runs.run_folder import RunFolder
from tests.tools.training.conftest import Small
from tests.training_run import losses, train_run

# The model has 230,000 weights. Three data-parallel ranks divide few buckets evenly; NCCL's flag pads each one to a
# multiple of 2^16 elements for each rank.
SEVERAL = "overlap_grad_reduce: true, overlap_param_gather: true"
SAMPLES = ("batch={micro: 1, global: 6, sequence_length: 32}", "schedule.steps=8", "checkpoint.interval=4")
BF16 = "precision={name: bf16, compute: bf16}"


def resumed(small: Small, name: str, *overrides: str) -> tuple[RunFolder, RunFolder]:
    """An uninterrupted run of 8 steps, and one that continues from its step 4."""
    overrides = (*SAMPLES, "validation.groups=[]", *overrides)
    whole = train_run(small.recipe(f"{name}-whole", *overrides))
    start = f"start={{mode: resume, checkpoint: '{whole.path}', step: 4}}"
    return whole, train_run(small.recipe(f"{name}-resumed", *overrides, start))


def test_three_data_parallel_ranks(make_small: Callable[[int], Small]) -> None:
    whole, again = resumed(
        make_small(6),
        "dp3",
        "cluster.gpus_per_node=3",
        f"parallelism={{{SEVERAL}}}",
        "megatron_args={ddp-bucket-size: 20000}",
        BF16,
    )
    assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > 4}
