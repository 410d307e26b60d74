"""Checkpoints that Megatron's training loop wrote in several layouts become Hugging Face models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.recipes.schema.model import Shape
from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import (
    LLAMA31_SCALING,
    describe_run,
    read_tensors,
    same_bits,
    save_llama,
    save_tokenizer,
)
from tests.ranks import run_ranks

TOKENS = [[(position * 37) % 517 for position in range(100)]]


def _run(folder: Path, ranks: int, *flags: str, **changes: Any) -> Path:
    """Imports a random model, trains it for two steps, and leaves a run folder with both checkpoints."""
    source = save_llama(folder / "hf", num_hidden_layers=4, **changes)
    hf_to_megatron.convert(source, folder / "base")
    shape = find_checkpoint(folder / "base").shape
    run = folder / "run"
    run_ranks(
        *(megatron_ranks.train, ranks, shape, folder / "base", run / "checkpoints", "--save-interval", "1"),
        *("--dist-ckpt-optim-fully-reshardable", *flags),
    )
    for step in (1, 2):
        mark_complete(checkpoint_folder(run / "checkpoints", step), step=step)
    describe_run(run, shape, save_tokenizer(folder / "tokenizer"))
    return run


LAYOUTS = {
    "TP2 PP2 bf16": (
        4,
        (
            *("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"),
            *("--sequence-parallel", "--bf16"),
        ),
        {"num_key_value_heads": 2, "rope_scaling": LLAMA31_SCALING},
    ),
    "DP2 tied": (2, (), {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "TP4": (4, ("--tensor-model-parallel-size", "4"), {"num_key_value_heads": 8}),
    "PP2 VPP2": (
        2,
        ("--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1", "--bf16"),
        {"num_key_value_heads": 2},
    ),
    "TP2 PP2 tied": (
        4,
        ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2", "--sequence-parallel"),
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in BF16 at TP2·PP2."""
    ranks, flags, changes = LAYOUTS["TP2 PP2 bf16"]
    return _run(tmp_path_factory.mktemp("trained"), ranks, *flags, **changes)


def _agrees_with_megatron(run: Path, exported: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = find_checkpoint(run).shape
    (computed,) = run_ranks(
        megatron_ranks.logits,
        1,
        Shape(**shape.model_dump(include=set(Shape.model_fields))),
        run / "checkpoints",
        TOKENS,
    )
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(computed - expected).max() < 1e-4


def test_export_is_the_trained_model(trained: Path, tmp_path: Path) -> None:
    manifest = megatron_to_hf.convert(trained, tmp_path / "out")
    assert (manifest.extra["steps"], manifest.extra["dtype"]) == ([2], "bfloat16")
    assert manifest.recipe_sha256 == "ab" * 32
    assert Manifest.read(tmp_path / "out").check_outputs(tmp_path / "out", contents=True) == []
    _agrees_with_megatron(trained, tmp_path / "out")
    base = read_tensors(trained.parent / "hf")
    moved = read_tensors(tmp_path / "out")
    assert base.keys() == moved.keys()
    assert not any(torch.equal(base[name].bfloat16(), moved[name]) for name in base if "proj" in name)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 497, "eos_token_id": 498, "pad_token_id": 499}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_other_layouts(layout: str, tmp_path: Path) -> None:
    ranks, flags, changes = LAYOUTS[layout]
    run = _run(tmp_path, ranks, *flags, **changes)
    megatron_to_hf.convert(run, tmp_path / "out")
    _agrees_with_megatron(run, tmp_path / "out")
    hf_to_megatron.convert(tmp_path / "out", tmp_path / "again")
    megatron_to_hf.convert(tmp_path / "again", tmp_path / "out2")
    assert same_bits(read_tensors(tmp_path / "out"), read_tensors(tmp_path / "out2"))


def test_steps_can_be_chosen(trained: Path, tmp_path: Path) -> None:
    megatron_to_hf.convert(trained, tmp_path / "one", step=1)
    megatron_to_hf.convert(trained / "checkpoints" / "iter_0000001", tmp_path / "same")
    megatron_to_hf.convert(trained / "checkpoints", tmp_path / "two")
    one, same, two = (read_tensors(tmp_path / name) for name in ("one", "same", "two"))
    assert same_bits(one, same)
    assert not same_bits(one, two)


def test_optimizer_weights_round_to_the_models(trained: Path, tmp_path: Path) -> None:
    megatron_to_hf.convert(trained, tmp_path / "model")
    megatron_to_hf.convert(trained, tmp_path / "optimizer", weights="optimizer")
    megatron_to_hf.convert(trained, tmp_path / "rounded", weights="optimizer", dtype="bf16")
    model, optimizer = read_tensors(tmp_path / "model"), read_tensors(tmp_path / "optimizer")
    assert {tensor.dtype for tensor in optimizer.values()} == {torch.float32}
    assert same_bits(model, {name: tensor.bfloat16() for name, tensor in optimizer.items()})
    assert not all(torch.equal(model[name].float(), optimizer[name]) for name in model)
    assert same_bits(model, read_tensors(tmp_path / "rounded"))


def test_average_of_steps(trained: Path, tmp_path: Path) -> None:
    megatron_to_hf.convert(trained, tmp_path / "mean", average=(1, 2), weights="optimizer")
    parts = []
    for step in (1, 2):
        megatron_to_hf.convert(trained, tmp_path / f"{step}", step=step, weights="optimizer")
        parts.append(read_tensors(tmp_path / f"{step}"))
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert same_bits(expected, read_tensors(tmp_path / "mean"))
    with pytest.raises(UserError, match="cannot be combined"):
        megatron_to_hf.convert(trained, tmp_path / "x", average=(1, 2), step=1)
    with pytest.raises(UserError, match="two or more distinct steps"):
        megatron_to_hf.convert(trained, tmp_path / "x", average=(1, 1))


@pytest.mark.slow
def test_optimizer_state_that_cannot_be_told_apart(tmp_path: Path) -> None:
    """Megatron's default layout of the optimizer state (dp_reshardable) is refused with the reason."""
    source = save_llama(tmp_path / "hf", num_hidden_layers=2)
    hf_to_megatron.convert(source, tmp_path / "base")
    shape = find_checkpoint(tmp_path / "base").shape
    run_ranks(megatron_ranks.train, 1, shape, tmp_path / "base", tmp_path / "run" / "checkpoints")
    mark_complete(checkpoint_folder(tmp_path / "run" / "checkpoints", 2), step=2)
    describe_run(tmp_path / "run", shape, save_tokenizer(tmp_path / "tokenizer"))
    megatron_to_hf.convert(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match=r"not in the fully reshardable layout.*checkpoint\.reshardable"):
        megatron_to_hf.convert(tmp_path / "run", tmp_path / "optimizer", weights="optimizer")


def test_the_recipes_tokenizer_is_checked(trained: Path, tmp_path: Path) -> None:
    shape = find_checkpoint(trained).shape
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(trained / "checkpoints")
    plain = Shape(**shape.model_dump(include=set(Shape.model_fields)))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")

    def fails(message: str, **section: Any) -> None:
        describe_run(run, plain, tokenizer, **section)
        with pytest.raises(UserError, match=message):
            _ = find_checkpoint(run).tokens

    fails("has no token '</s>'", end_of_text="</s>")
    fails(r"is not the recipe's 0000", sha256="0" * 64)
    fails(r"elsewhere/tokenizer\.json: no such file.*--tokenizer", path="elsewhere")
    describe_run(run, plain, tokenizer, path="elsewhere")
    assert find_checkpoint(run, tokenizer=tokenizer).tokens.end == (498,)
    save_tokenizer(tokenizer, vocab_size=600)
    fails("600 tokens, but the model has 517")


@pytest.mark.slow
def test_lm_eval_scores_the_export(trained: Path, tmp_path: Path) -> None:
    """The evaluation harness's `hf` backend accepts the folder and computes the same as transformers."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    megatron_to_hf.convert(trained, tmp_path / "out", dtype="fp32")
    harness = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=1)
    requests = [Instance("loglikelihood", {}, ("Guten", " Morgen"), 0)]
    ((score, _),) = harness.loglikelihood(requests)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("Guten Morgen").input_ids])
    start = len(tokenizer("Guten").input_ids)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits, -1)[0, start - 1 : -1]
    assert score == pytest.approx(logs.gather(1, ids[0, start:, None]).sum().item(), abs=1e-3)
