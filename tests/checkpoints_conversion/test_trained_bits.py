"""Whatever layout the training loop loads and saves, every bit returns to Hugging Face: HF → Megatron, one
step at learning rate 0 in that layout, → HF."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.checkpoints_conversion.safetensors_files import tensor_bytes
from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import describe_run, read_tensors, save_llama, save_tokenizer
from tests.ranks import run_ranks

STILL = ("--train-iters", "1", "--lr", "0", "--min-lr", "0", "--weight-decay", "0")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, with its type and sizes."""
    return {
        name: f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(tensor_bytes(tensor)).hexdigest()}"
        for name, tensor in read_tensors(folder).items()
    }


def through_the_trainer(
    folder: Path, tensor: int, pipeline: int, *flags: str, **changes: Any
) -> tuple[Path, Path]:
    """A random model and its round-trip result."""
    source = save_llama(folder / "hf", num_hidden_layers=4, **changes)
    hf_to_megatron.convert(source, folder / "base")
    shape = find_checkpoint(folder / "base").shape
    layout = ["--tensor-model-parallel-size", str(tensor), "--pipeline-model-parallel-size", str(pipeline)]
    if tensor > 1:
        layout.append("--sequence-parallel")
    checkpoints = folder / "run" / "checkpoints"
    run_ranks(
        *(
            megatron_ranks.train,
            tensor * pipeline,
            shape,
            folder / "base",
            checkpoints,
            *STILL,
            *layout,
            *flags,
        ),
        timeout=400,
    )
    mark_complete(checkpoint_folder(checkpoints, 1), step=1)
    describe_run(folder / "run", shape, save_tokenizer(folder / "tokenizer"))
    megatron_to_hf.convert(folder / "run", folder / "back")
    return source, folder / "back"


# Covers every valid pair of values of tensor- and pipeline-parallel size, query groups, and tied embeddings
# (a tensor-parallel rank holds whole query groups). 517 tokens need padding in every layout, to different
# sizes.
COVERING = [
    (1, 2, 2, True),
    *(
        pytest.param(*values, marks=pytest.mark.slow)
        for values in (
            (1, 1, 1, False),
            (1, 2, 1, True),
            (1, 1, 8, True),
            (2, 1, 2, False),
            (2, 2, 8, False),
            (2, 2, 2, True),
            (4, 1, 8, True),
            (4, 2, 8, False),
        )
    ),
]


@pytest.mark.parametrize(("tensor", "pipeline", "groups", "tied"), COVERING)
def test_every_bit_comes_back(tmp_path: Path, tensor: int, pipeline: int, groups: int, tied: bool) -> None:
    source, back = through_the_trainer(
        tmp_path, tensor, pipeline, num_key_value_heads=groups, tie_word_embeddings=tied
    )
    assert hashes(back) == hashes(source)


@pytest.mark.slow
def test_vocabulary_that_needs_no_padding(tmp_path: Path) -> None:
    source, back = through_the_trainer(tmp_path, 2, 1, vocab_size=512, num_key_value_heads=2)
    assert hashes(back) == hashes(source)


@pytest.mark.slow
def test_bf16_and_its_optimizer(tmp_path: Path) -> None:
    """The optimizer's FP32 copies of BF16 weights equal those weights as long as nothing is learnt."""
    source, back = through_the_trainer(
        *(tmp_path, 2, 2, "--bf16", "--dist-ckpt-optim-fully-reshardable"),
        dtype="bfloat16",
        num_key_value_heads=2,
    )
    assert hashes(back) == hashes(source)
    megatron_to_hf.convert(tmp_path / "run", tmp_path / "optimizer", weights="optimizer", dtype="bf16")
    assert hashes(tmp_path / "optimizer") == hashes(source)


@pytest.mark.slow
def test_asynchronous_save(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", num_hidden_layers=4, num_key_value_heads=2)
    hf_to_megatron.convert(source, tmp_path / "base")
    shape = find_checkpoint(tmp_path / "base").shape
    checkpoints = tmp_path / "run" / "checkpoints"
    layout = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
    run_ranks(
        *(megatron_ranks.save_asynchronously, 2, shape, tmp_path / "base", checkpoints, *layout), timeout=400
    )
    describe_run(tmp_path / "run", shape, save_tokenizer(tmp_path / "tokenizer"))
    # Without a completion mark, as stock Megatron leaves it; its tracker file names the step.
    manifest = megatron_to_hf.convert(tmp_path / "run", tmp_path / "back")
    assert manifest.extra["steps"] == [1]
    assert hashes(tmp_path / "back") == hashes(source)
