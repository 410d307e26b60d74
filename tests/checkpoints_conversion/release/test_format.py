"""A release has the layout that loaders other than transformers (llama.cpp's converter, vLLM) expect: the
safetensors format, names, types, index, and the keys of config.json that they read."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from emma.base.files import read_json
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from tests.checkpoints_conversion.tiny_models import LLAMA31_SCALING, save_llama, save_tokenizer

_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_LAYER = (
    "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj post_attention_layernorm "
    "mlp.gate_proj mlp.up_proj mlp.down_proj"
).split()


def header_of(path: Path) -> dict[str, Any]:
    """A file's header, after checking everything that the format requires."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length]
    assert text.startswith(b"{")
    assert length % 8 == 0
    header: dict[str, Any] = json.loads(text)
    assert header.pop("__metadata__") == {"format": "pt"}
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = entry["data_offsets"]
        assert first == position, f"a gap or an overlap before {name}"
        assert end - first == math.prod(entry["shape"]) * _BYTES[entry["dtype"]]
        assert first % _BYTES[entry["dtype"]] == 0
        position = end
    assert 8 + length + position == len(content)
    return header


def check_folder(folder: Path) -> dict[str, Any]:
    """Checks weights and configuration against each other; returns the configuration."""
    config: dict[str, Any] = read_json(folder / "config.json")
    hidden, heads, groups = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    width, ffn, vocabulary = config["head_dim"], config["intermediate_size"], config["vocab_size"]
    sizes = {
        "self_attn.q_proj": [heads * width, hidden],
        "self_attn.k_proj": [groups * width, hidden],
        "self_attn.v_proj": [groups * width, hidden],
        "self_attn.o_proj": [hidden, heads * width],
        "mlp.gate_proj": [ffn, hidden],
        "mlp.up_proj": [ffn, hidden],
        "mlp.down_proj": [hidden, ffn],
    }
    expected = {
        f"model.layers.{layer}.{name}.weight": sizes.get(name, [hidden])
        for layer in range(config["num_hidden_layers"])
        for name in _LAYER
    }
    expected |= {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = [vocabulary, hidden]
    headers = {path.name: header_of(path) for path in sorted(folder.glob("*.safetensors"))}
    found = {name: entry for header in headers.values() for name, entry in header.items()}
    assert {name: entry["shape"] for name, entry in found.items()} == expected
    assert sum(map(len, headers.values())) == len(expected)
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    assert {entry["dtype"] for entry in found.values()} == {names[config["torch_dtype"]]}
    if (folder / "model.safetensors.index.json").is_file():
        index = read_json(folder / "model.safetensors.index.json")
        assert index["weight_map"] == {name: file for file, header in headers.items() for name in header}
        total = sum(math.prod(entry["shape"]) * _BYTES[entry["dtype"]] for entry in found.values())
        assert index["metadata"]["total_size"] == total
        count = len(headers)
        assert list(headers) == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    else:
        assert list(headers) == ["model.safetensors"]
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert config["hidden_act"] == "silu"
    assert not config["attention_bias"]
    assert not config["mlp_bias"]
    for key in ("max_position_embeddings", "rms_norm_eps", "rope_theta"):
        assert config[key] > 0
    return config


def check_tokens(folder: Path, config: dict[str, Any]) -> None:
    """The tokenizer files exist, fit the vocabulary, and agree on begin and end tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["tokenizer_class"]
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    generation = read_json(folder / "generation_config.json")
    for key in ("bos_token", "eos_token"):
        token = settings[key]
        token = token["content"] if isinstance(token, dict) else token
        ids = generation[f"{key}_id"]
        assert tokenizer.token_to_id(token) in (ids if isinstance(ids, list) else [ids])
        assert config[f"{key}_id"] == ids


def test_release_of_a_run(released: Path) -> None:
    check_tokens(released, check_folder(released))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export(tmp_path: Path, tied: bool, dtype: str) -> None:
    source = save_llama(
        tmp_path / "hf",
        dtype=dtype,
        tie_word_embeddings=tied,
        rope_scaling=LLAMA31_SCALING,
        bos_token_id=497,
        eos_token_id=498,
    )
    save_tokenizer(source)
    hf_to_megatron.convert(source, tmp_path / "megatron")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "out", shard_bytes=80_000 if tied else 10**9)
    config = check_folder(tmp_path / "out")
    check_tokens(tmp_path / "out", config)
    # These are the keys that loaders read.
    assert config["rope_scaling"] == LLAMA31_SCALING
    assert config["rope_theta"] == 500000.0
