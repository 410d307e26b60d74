"""Resuming where gradient buckets are padded, with Megatron's real loop on the CPU: the losses must be the uninterrupted
ones to the last digit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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


def exports_agree(run: RunFolder, step: int, folder: Path) -> bool:
    """Whether the optimizer's weights, exported, round to the model's in every tensor."""
    import torch
    from safetensors.torch import load_file

    from emma.checkpoints_conversion import megatron_to_hf

    found = {}
    for weights in ("model", "optimizer"):
        megatron_to_hf.convert(run.path, folder / weights, step=step, weights=weights)
        files = (folder / weights).glob("*.safetensors")
        found[weights] = {name: tensor for file in files for name, tensor in load_file(file).items()}
    model, main = found["model"], found["optimizer"]
    return model.keys() == main.keys() and all(
        torch.equal(main[name].to(torch.bfloat16), model[name].to(torch.bfloat16)) for name in model
    )


def test_three_data_parallel_ranks(make_small: Callable[[int], Small], tmp_path: Path) -> None:
    whole, again = resumed(
        make_small(6),
        "dp3",
        "cluster.gpus_per_node=3",
        f"parallelism={{{SEVERAL}}}",
        "megatron_args={ddp-bucket-size: 20000}",
        BF16,
    )
    assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert exports_agree(whole, 4, tmp_path)


FLAG = "ddp-pad-buckets-for-high-nccl-busbw: true"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "parallelism", "bucket", "precision"),
    [
        (2, f"{{{SEVERAL}}}", 40_000, BF16),
        # A smaller bucket would leave the third rank no parameter at all.
        (3, f"{{{SEVERAL}}}", 150_000, BF16),
        (2, f"{{tensor: 2, {SEVERAL}}}", 30_000, "precision={name: fp32, compute: fp32}"),
    ],
)
def test_padding_for_nccl(
    ranks: int,
    parallelism: str,
    bucket: int,
    precision: str,
    make_small: Callable[[int], Small],
    tmp_path: Path,
) -> None:
    name = f"nccl-{ranks}-{bucket}"
    args = f"megatron_args={{ddp-bucket-size: {bucket}, {FLAG}}}"
    cluster = f"cluster.gpus_per_node={ranks}"
    whole, again = resumed(make_small(6), name, cluster, f"parallelism={parallelism}", args, precision)
    assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert exports_agree(whole, 4, tmp_path)
