"""Hugging Face → Megatron → Hugging Face gives the same bits, for every shape of the Llama family."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from tests.checkpoints_conversion.tiny_models import (
    LLAMA31_SCALING,
    read_tensors,
    same_bits,
    save_llama,
    save_tokenizer,
)

LLAMA3 = {"num_key_value_heads": 2, "tie_word_embeddings": False}


def _there_and_back(tmp_path: Path, source: Path, **options: Any) -> Path:
    hf_to_megatron.convert(source, tmp_path / "megatron")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back", **options)
    return tmp_path / "back"


@pytest.mark.parametrize(
    ("groups", "tied", "scaling"), list(itertools.product((1, 2, 8), (False, True), (None, LLAMA31_SCALING)))
)
def test_same_bits_come_back(tmp_path: Path, groups: int, tied: bool, scaling: dict[str, Any] | None) -> None:
    source = save_llama(
        tmp_path / "hf", num_key_value_heads=groups, tie_word_embeddings=tied, rope_scaling=scaling
    )
    back = _there_and_back(tmp_path, source)
    assert same_bits(read_tensors(source), read_tensors(back))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    source = save_llama(tmp_path / "hf", dtype=dtype)
    back = _there_and_back(tmp_path, source)
    assert same_bits(read_tensors(source), read_tensors(back))
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == dtype


def test_separate_head_width(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", head_dim=16)
    assert same_bits(read_tensors(source), read_tensors(_there_and_back(tmp_path, source)))


def test_shards_in_and_out(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", shard="100KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    back = _there_and_back(tmp_path, source, shard_bytes=150_000)
    names = sorted(path.name for path in back.glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == names
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_tensors(source).values())
    assert same_bits(read_tensors(source), read_tensors(back))


def test_vocabulary_without_padding(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", vocab_size=256)
    manifest = hf_to_megatron.convert(source, tmp_path / "megatron")
    assert manifest.extra["padding_rows"] == 0
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(read_tensors(source), read_tensors(tmp_path / "back"))


def test_large_vocabulary_in_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_to_megatron, "_VOCABULARY_BLOCK", 64 * 4 * 100)
    source = save_llama(tmp_path / "hf")
    assert same_bits(read_tensors(source), read_tensors(_there_and_back(tmp_path, source)))


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = save_llama(tmp_path / "hf", rope_scaling=LLAMA31_SCALING)
    back = _there_and_back(tmp_path, source)
    ids = torch.arange(200)[None]
    one, other = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (source, back))
    assert torch.equal(one, other)


def test_casts_only_when_asked(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    hf_to_megatron.convert(source, tmp_path / "bf16", dtype="bf16")
    megatron_to_hf.convert(tmp_path / "bf16", tmp_path / "back", dtype="fp32")
    expected = {name: tensor.bfloat16().float() for name, tensor in read_tensors(source).items()}
    assert same_bits(expected, read_tensors(tmp_path / "back"))


def test_mixed_types_need_a_cast(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = save_llama(tmp_path / "hf")
    tensors = read_tensors(source)
    tensors["model.layers.1.self_attn.k_proj.weight"] = tensors[
        "model.layers.1.self_attn.k_proj.weight"
    ].half()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"k_proj\.weight is float16.*--dtype"):
        hf_to_megatron.convert(source, tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()
    hf_to_megatron.convert(source, tmp_path / "megatron", dtype="fp32")


def test_tokenizer_and_special_tokens_are_kept(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", bos_token_id=497, eos_token_id=[498, 499])
    save_tokenizer(source)
    back = _there_and_back(tmp_path, source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    generation = json.loads((back / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (497, [498, 499])
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(back).eos_token == "<|end|>"


def test_manifests_tell_the_truth(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    back = _there_and_back(tmp_path, source)
    imported, exported = Manifest.read(tmp_path / "megatron"), Manifest.read(back)
    assert imported.check_outputs(tmp_path / "megatron", contents=True) == []
    assert exported.check_outputs(back, contents=True) == []
    weights = next(record for record in imported.inputs if record.path == "model.safetensors")
    assert weights.checksum == f"sha256:{sha256_file(source / 'model.safetensors')}"
    assert {record.path for record in exported.outputs} >= {"config.json", "model.safetensors"}


def test_recipe_model_gives_the_padding(tmp_path: Path) -> None:
    from emma.checkpoints_conversion.config import model_from_hf

    source = save_llama(tmp_path / "hf")
    shape = model_from_hf(source, vocab_padding=64)
    assert (
        hf_to_megatron.convert(source, tmp_path / "megatron", model=shape).extra["padding_rows"] == 576 - 517
    )


def test_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    from emma.checkpoints_conversion.config import model_from_hf

    source = save_llama(tmp_path / "hf")
    other = model_from_hf(save_llama(tmp_path / "other", rope_theta=10000.0, num_key_value_heads=4))
    with pytest.raises(UserError, match=r"query_groups: 2 != 4; rope_theta: 500000\.0 != 10000\.0"):
        hf_to_megatron.convert(source, tmp_path / "megatron", model=other)
    assert not (tmp_path / "megatron").exists()
