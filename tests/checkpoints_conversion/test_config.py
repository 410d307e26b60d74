"""`config.json` ⇄ shape, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.checkpoints_conversion.config import (
    TokenIds,
    generation_config,
    hf_config,
    model_from_hf,
    token_ids_from_hf,
)
from emma.recipes.schema.model import RopeScaling, Shape

LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def _folder(tmp_path: Path, **changes: Any) -> Path:
    config = {key: value for key, value in (LLAMA31_8B | changes).items() if value != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_both_forms_of_rope(tmp_path: Path) -> None:
    classic = model_from_hf(_folder(tmp_path))
    together = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    newer = model_from_hf(
        _folder(tmp_path, rope_scaling="absent", rope_theta="absent", rope_parameters=together)
    )
    assert classic == newer
    assert classic.rope_scaling == RopeScaling(factor=8.0)
    assert (classic.layers, classic.query_groups, classic.channels) == (32, 8, 128)


def test_default_rope_in_the_newer_form(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path,
        rope_scaling="absent",
        rope_theta="absent",
        rope_parameters={"rope_type": "default", "rope_theta": 7.0},
    )
    shape = model_from_hf(folder)
    assert (shape.rope_theta, shape.rope_scaling) == (7.0, None)


def test_left_out_fields_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    absent = ("num_key_value_heads", "rope_scaling", "rope_theta", "rms_norm_eps", "max_position_embeddings")
    shape = model_from_hf(_folder(tmp_path, **dict.fromkeys(absent, "absent")))
    default = LlamaConfig()
    assert shape.norm_epsilon == default.rms_norm_eps
    assert shape.max_position_embeddings == default.max_position_embeddings
    assert shape.query_groups == 32
    assert shape.rope_theta == default.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bloom"}, "only models of type .*`llama`"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"attention_bias": True}, "`attention_bias` is True"),
        ({"mlp_bias": True}, "`mlp_bias` is True"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "unknown rope type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"quantization_config": {"bits": 4}}, "dequantise"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 7}, "not a multiple of query_groups"),
        ({"num_hidden_layers": "absent"}, "`num_hidden_layers` is missing"),
        ({"hidden_size": "4096"}, "hidden_size"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model_from_hf(_folder(tmp_path, **changes))
    assert "config.json" in str(caught.value)


def test_missing_and_broken_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        model_from_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match="not valid JSON"):
        model_from_hf(tmp_path)


@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=32.0, original_max_position_embeddings=512)])
def test_transformers_reads_what_is_written(tmp_path: Path, scaling: RopeScaling | None) -> None:
    from transformers import AutoConfig

    shape = Shape(
        layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        attention_heads=8,
        query_groups=2,
        head_dim=16,
        vocab_size=517,
        max_position_embeddings=1024,
        rope_theta=500000.0,
        rope_scaling=scaling,
        norm_epsilon=1e-6,
        tie_embeddings=True,
    )
    tokens = TokenIds(begin=1, end=(2, 3))
    (tmp_path / "config.json").write_text(json.dumps(hf_config(shape, dtype="bfloat16", tokens=tokens)))
    read = AutoConfig.from_pretrained(tmp_path)
    assert (read.num_key_value_heads, read.head_dim, read.rms_norm_eps) == (2, 16, 1e-6)
    assert read.rope_parameters["rope_theta"] == 500000.0
    assert read.rope_parameters["rope_type"] == ("default" if scaling is None else "llama3")
    if scaling is not None:
        assert read.rope_parameters["factor"] == 32.0
        assert read.rope_parameters["original_max_position_embeddings"] == 512
    assert read.tie_word_embeddings
    assert read.eos_token_id == [2, 3]
    assert model_from_hf(tmp_path) == shape
    assert token_ids_from_hf(tmp_path, shape.vocab_size) == tokens


def test_generation_config_wins_over_config(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [128001, 128009], "bos_token_id": null}')
    assert token_ids_from_hf(folder, 128256) == TokenIds(begin=128000, end=(128001, 128009))
    assert generation_config(TokenIds(begin=None, end=(5,))) == {"eos_token_id": 5}
