"""Megatron's older checkpoints, one pickled file per rank."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion import megatron_to_hf, parity
from emma.checkpoints_conversion.config import model_from_hf
from emma.recipes.schema.model import Shape
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.fp8_run import change_recipe
from tests.checkpoints_conversion.tiny_models import (
    describe_run,
    read_tensors,
    same_bits,
    save_llama,
    save_tokenizer,
)
from tests.ranks import run_ranks

HEADS, CHANNELS, ROWS = 8, 8, 640  # 517 tokens, padded


def _layer(tensors: dict[str, Any], number: int, groups: int, tp: int, rank: int) -> dict[str, Any]:
    """A layer as a tensor-parallel rank of Megatron's local implementation holds it."""

    def weight(name: str) -> Any:
        return tensors[f"model.layers.{number}.{name}.weight"]

    def part(tensor: Any, axis: int) -> Any:
        return tensor.chunk(tp, axis)[rank].clone()

    q, k, v = (weight(f"self_attn.{name}_proj").view(groups, -1, CHANNELS, 64) for name in "qkv")
    return {
        "input_layernorm.weight": weight("input_layernorm"),
        "self_attention.linear_qkv.weight": part(torch.cat([q, k, v], 1).reshape(-1, 64), 0),
        "self_attention.linear_qkv._extra_state": None,
        "self_attention.linear_proj.weight": part(weight("self_attn.o_proj"), 1),
        "pre_mlp_layernorm.weight": weight("post_attention_layernorm"),
        "mlp.linear_fc1.weight": torch.cat(
            [part(weight("mlp.gate_proj"), 0), part(weight("mlp.up_proj"), 0)]
        ),
        "mlp.linear_fc2.weight": part(weight("mlp.down_proj"), 1),
    }


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


def write_ranks(
    run: Path, tensors: dict[str, Any], groups: int, tp: int, pp: int, vpp: int = 1, layers: int = 4
) -> Path:
    """Writes step 2 of a run in the `torch` format; returns the checkpoint's folder."""
    folder = run / "checkpoints" / "iter_0000002"
    each = layers // (pp * vpp)
    tied = "lm_head.weight" not in tensors

    def table(name: str, rank: int) -> Any:
        padded = torch.cat([tensors[name], torch.zeros(ROWS - len(tensors[name]), 64)])
        return padded.chunk(tp)[rank].clone()

    for p in range(pp):
        for t in range(tp):
            state: dict[str, Any] = {
                "args": Namespace(num_layers=layers),
                "checkpoint_version": 3.0,
                "iteration": 2,
                "rng_state": [{"np_rng_state": np.random.get_state()}],
            }
            for chunk in range(vpp):
                model: dict[str, Any] = {}
                for index in range(each):
                    number = (chunk * pp + p) * each + index
                    part = _layer(tensors, number, groups, tp, t)
                    model |= {f"decoder.layers.{index}.{name}": value for name, value in part.items()}
                if p == 0 and chunk == 0:
                    model["embedding.word_embeddings.weight"] = table("model.embed_tokens.weight", t)
                if p == pp - 1 and chunk == vpp - 1:
                    model["decoder.final_layernorm.weight"] = tensors["model.norm.weight"]
                    if not tied or pp > 1:  # the last of several stages repeats the shared table
                        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
                        model["output_layer.weight"] = table(name, t)
                state["model" if vpp == 1 else f"model{chunk}"] = model
            place = folder / (f"mp_rank_{t:02d}" if pp == 1 else f"mp_rank_{t:02d}_{p:03d}")
            place.mkdir(parents=True)
            torch.save(state, place / "model_optim_rng.pt")
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    return folder


def _run(tmp_path: Path, tp: int, pp: int, vpp: int = 1, groups: int = 2, tied: bool = False) -> Path:
    source = save_llama(
        tmp_path / "hf", num_hidden_layers=4, num_key_value_heads=groups, tie_word_embeddings=tied
    )
    write_ranks(tmp_path / "run", read_tensors(source), groups, tp, pp, vpp)
    describe_run(tmp_path / "run", model_from_hf(source), save_tokenizer(tmp_path / "tokenizer"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("tp", "pp", "vpp", "groups", "tied"),
    [
        (1, 1, 1, 2, True),
        (2, 1, 1, 2, False),
        (1, 2, 2, 1, False),
        (2, 2, 1, 8, True),
        (4, 2, 2, 8, False),
    ],
)
def test_same_bits_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int, pp: int, vpp: int, groups: int, tied: bool
) -> None:
    run = _run(tmp_path, tp, pp, vpp, groups, tied)
    monkeypatch.chdir(tmp_path)
    manifest = megatron_to_hf.convert(run, tmp_path / "out")
    assert manifest.extra["steps"] == [2]
    assert same_bits(read_tensors(tmp_path / "hf"), read_tensors(tmp_path / "out"))
    assert sum(record.path.endswith(".pt") for record in manifest.inputs) == tp * pp
    assert parity.compare(tmp_path / "hf", run, logits=False).passed


def _fails(run: Path, tmp_path: Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message):
        megatron_to_hf.convert(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path, 2, 2)
    folder = run / "checkpoints" / "iter_0000002"
    _fails(run, tmp_path, "does not say which of the optimizer's values", weights="optimizer")
    change_recipe(run, precision={"fp8": "tensorwise", "fp8_params": True})
    _fails(
        run,
        tmp_path,
        "which weight; its run kept the model's weights in FP8.*--weights model, which releases",
    )
    change_recipe(run, precision={"fp8": None, "fp8_params": False})
    path = folder / "mp_rank_01_000" / "model_optim_rng.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _fails(run, tmp_path, r"mp_rank_01_000/model_optim_rng\.pt: refused: its archive is damaged")
    path.write_bytes(b"")
    _fails(run, tmp_path, r"mp_rank_01_000/model_optim_rng\.pt: refused: it is neither a zip archive")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "rng_state": [{"attack": _Attack()}]}, path)
    _fails(run, tmp_path, r"it refers to (posix|os)\.mkdir, .* Nothing of it was executed")
    assert not (tmp_path / "attacked").exists()
    torch.save({"model": {"language_model.embedding.weight": torch.zeros(1)}}, path)
    _fails(run, tmp_path, "legacy models")
    torch.save({"optimizer": {}}, path)
    _fails(run, tmp_path, "contains no model")
    path.unlink()
    _fails(run, tmp_path, "pipeline rank 0, tensor rank 1 is missing")
    path.write_bytes(whole)
    (folder / "mp_rank_00_000_001").mkdir()
    _fails(run, tmp_path, "expert parallelism")
    (folder / "mp_rank_00_000_001").rmdir()
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").unlink()
    _fails(run, tmp_path, r"step 2: complete\.json is missing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (
            4,
            (
                "--tensor-model-parallel-size",
                "2",
                "--pipeline-model-parallel-size",
                "2",
                "--sequence-parallel",
            ),
        ),
        (2, ("--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1")),
    ],
)
def test_what_the_training_loop_saves(tmp_path: Path, ranks: int, flags: tuple[str, ...]) -> None:
    """Megatron itself loads what it wrote and computes the export's logits."""
    from transformers import AutoModelForCausalLM

    shape = model_from_hf(save_llama(tmp_path / "hf", num_hidden_layers=4))
    run, tokens = tmp_path / "run", [[(position * 37 + i) % 517 for position in range(100)] for i in range(2)]
    flags = (*flags, "--ckpt-format", "torch", "--init-method-std", "0.1")
    run_ranks(megatron_ranks.train, ranks, shape, None, run / "checkpoints", *flags)
    plain = Shape(**shape.model_dump(include=set(Shape.model_fields)))
    describe_run(run, plain, save_tokenizer(tmp_path / "tokenizer"))
    megatron_to_hf.convert(run, tmp_path / "out")
    results = run_ranks(megatron_ranks.logits, ranks, plain, run / "checkpoints", tokens, *flags)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        expected = model(torch.tensor(tokens)).logits.numpy()
    computed = [result for result in results if result is not None]
    assert computed
    assert np.abs(expected).max() > 1
    for result in computed:
        assert np.abs(result - expected).max() < 1e-4
