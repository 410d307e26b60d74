"""What no architecture can carry is refused with one message that says what and why; and an architecture's file, too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.config import TokenIds, hf_config, model_from_hf
from emma.recipes.load import load_section
from emma.recipes.schema.architecture import FOLDER, read_architecture
from tests.checkpoints_conversion.families import CASES, COMMON, save
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits


def _config(folder: Path, case: str, **changes: Any) -> Path:
    kind, values = CASES[case]
    config = {"model_type": kind, **COMMON, **values, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"model_type": "bloom"}, "`model_type` is 'bloom': only models of type .*`qwen3`.* can be converted"),
        ("llama", {"model_type": "mixtral", "num_local_experts": 8}, "`num_local_experts` is 8: mixtures of experts"),
        ("gemma3", {"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "softcapping` is 50.0: .*no soft caps"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "softcapping` is 30.0: .*no soft caps"),
        ("gemma3", {"model_type": "gemma3"}, "a model of images and text. --text-only takes its text model"),
        ("gemma3", {"hidden_activation": "gelu"}, "`hidden_activation` is 'gelu': architecture gemma3 has \"gelu_pytorch_tanh\""),
        ("gemma3", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True"),
        ("qwen2", {"use_sliding_window": True}, "`use_sliding_window` is True: architecture qwen2 has false"),
        ("qwen3", {"attention_bias": True}, "`attention_bias` is True"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "architecture qwen3 without scaling"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "`layer_types` is .*: architecture qwen2 has layers of one kind"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 3}, "is for 3 layers, but `num_hidden_layers` is 8"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 8}, "chunked_attention is no kind of layer"),
        ("gemma3", {"sliding_window": None}, "sliding_window and `sliding` layers go together"),
        ("gemma3", {"sliding_window_pattern": 0}, "repeat after 0"),
        ("apertus", {"rope_parameters": None, "rope_scaling": None}, "`rope_scaling` is None: to transformers 4 no scaling"),
        ("apertus", {"qk_norm": False}, "`qk_norm` is False: architecture apertus has true"),
        ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "lacks original_max_position_embeddings"),
        (
            "olmo3",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7}},
            "`yarn` has mscale 0.7",
        ),
        ("smollm3", {"no_rope_layers": [1, 1]}, "`no_rope_layers` is for 2 layers"),
    ],
)  # fmt: skip
def test_models_are_refused(tmp_path: Path, case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model_from_hf(_config(tmp_path, case, **changes))
    assert str(tmp_path / "config.json") in str(caught.value) or "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query_scale": 64.0}, "`query_scale` is not a key of architecture llama; gemma3 have it"),
        ({"sliding_window": 512}, "`sliding_window` is not a key of architecture llama; gemma3, mistral, olmo3 have it"),
        ({"architecture": "bloom"}, "there is no architecture `bloom`; there are apertus, gemma3"),
        ({"architecture": "gemma3", "layer_kinds": ["nope"]}, "architecture gemma3 has no `nope` layers"),
        ({"architecture": "olmo3", "sliding_window": 8, "layer_kinds": ["full"]}, "go together; give both or neither"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "architecture llama has no RoPE scaling `linear`"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 8.0}}, "rope scaling `linear` has no beta_fast"),
    ],
)  # fmt: skip
def test_keys_of_other_architectures_are_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    from ruamel.yaml import YAML

    path = tmp_path / "mine.yaml"
    with path.open("w") as handle:
        YAML(typ="safe").dump({"base": "llama3_8b", **values}, handle)
    with pytest.raises(UserError, match=re.escape(message)):
        load_section("model", str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("qk_norm: head", "qk_norm: heads", ":14: `network.qk_norm`: Input should be 'none', 'head' or 'all'"),
        ("  qk_norm: head", "  qk_normal: head", ":14: `network.qk_normal`: unknown key"),
        ("sizes: [channels]}", "sizes: [chanels]}", ":18: `layer.self_attn.q_norm.weight.sizes.0`"),
        ("  self_attn.q_norm", "  self_attn.z_proj.weight: {key: self_attention.linear_qkv.weight, sizes: [queries, hidden]}\n  self_attn.q_norm", "a tensor is one parameter, or query, key and value"),
        ("base: llama", "base: qwen4", "qwen4.yaml: no such recipe file"),
        ("  qk_norm: head", "  activation: xielu", "does not fit the rows of `layer`"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    for name in ("llama", "qwen3"):
        (tmp_path / f"{name}.yaml").write_text((FOLDER / f"{name}.yaml").read_text())
    path = tmp_path / "qwen3.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        read_architecture(path)
    assert message in str(caught.value)


def test_a_silent_config_gets_its_familys_defaults(tmp_path: Path) -> None:
    sizes = {
        key: COMMON[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    }
    found = {}
    for kind in ("llama", "mistral", "qwen3", "smollm3", "olmo3", "apertus", "gemma3_text"):
        config = {"model_type": kind, "num_attention_heads": 32, **sizes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found[kind] = model_from_hf(tmp_path)
    assert found["mistral"].sliding_window == 4096 and found["mistral"].query_groups == 8
    assert found["qwen3"].channels == 128
    assert [found[kind].rope_theta for kind in ("llama", "smollm3", "olmo3", "apertus")] == [
        1e4,
        2e6,
        5e5,
        12e6,
    ]
    assert found["smollm3"].layer_kinds == ["full", "full", "full", "nope"]
    assert found["olmo3"].kinds == ("sliding", "sliding", "sliding", "full")
    assert found["gemma3_text"].rope("sliding") == (1e4, None) and found["gemma3_text"].rope_theta == 1e6
    assert found["apertus"].rope_scaling is not None and found["apertus"].rope_scaling.factor == 8.0
    # So its file must say it where there is none.
    plain = found["apertus"].model_copy(update={"rope_scaling": None})
    written = hf_config(plain, dtype="float32", tokens=TokenIds())
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert (
        written["rope_scaling"] == {"rope_type": "default"} and model_from_hf(tmp_path).rope_scaling is None
    )


@pytest.mark.parametrize("form", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_images_and_text(tmp_path: Path, form: str) -> None:
    """Both forms in which such folders are published; what is left behind is named."""
    import torch
    from safetensors.torch import save_file

    text = save("gemma3, plain", tmp_path / "text")
    whole = tmp_path / "whole"
    whole.mkdir()
    tensors = {form + name.removeprefix("model."): value for name, value in read_tensors(text).items()}
    tensors |= {"vision_tower.x": torch.ones(2), "multi_modal_projector.y": torch.ones(2)}
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    inner = json.loads((text / "config.json").read_text())
    config = {
        "model_type": "gemma3",
        "text_config": inner,
        "vision_config": {"hidden_size": 8},
        "eos_token_id": [1, 2],
    }
    (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--text-only"):
        hf_to_megatron.convert(whole, tmp_path / "refused")
    manifest = hf_to_megatron.convert(whole, tmp_path / "megatron", text_only=True)
    assert manifest.extra["left_behind"] == ["multi_modal_projector.y", "vision_tower.x"]
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(read_tensors(text), read_tensors(tmp_path / "back"))
    released = json.loads((tmp_path / "back" / "config.json").read_text())
    assert released["architectures"] == ["Gemma3ForCausalLM"] and released["eos_token_id"] == [1, 2]
    tensors["model.extra.weight"] = torch.ones(2)
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"parameter model.extra.weight does not belong"):
        hf_to_megatron.convert(whole, tmp_path / "refused", text_only=True)
