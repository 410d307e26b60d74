"""Verification accepts correct conversions and catches every kind of wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import LLAMA31_SCALING, read_tensors, save_llama, save_tokenizer
from tests.ranks import run_ranks

HEADS, GROUPS, HIDDEN, LAYERS = 8, 4, 64, 3
Tensors = dict[str, Any]


def _each_layer(tensors: Tensors, name: str, change: Callable[[Any], Any]) -> None:
    for layer in range(LAYERS):
        key = f"model.layers.{layer}.{name}.weight"
        tensors[key] = change(tensors[key]).contiguous()


def _no_rotary_reordering(tensors: Tensors) -> None:
    """Rows of a head as in Meta's files, which rotate neighbouring channels against each other."""
    for name, heads in (("self_attn.q_proj", HEADS), ("self_attn.k_proj", GROUPS)):
        _each_layer(
            tensors, name, lambda w, n=heads: w.view(n, 2, -1, HIDDEN).transpose(1, 2).reshape(-1, HIDDEN)
        )


def _swapped_gate_and_up(tensors: Tensors) -> None:
    for layer in range(LAYERS):
        gate, up = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


def _query_groups_off_by_one(tensors: Tensors) -> None:
    channels = HIDDEN // HEADS
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        _each_layer(tensors, name, lambda weight: weight.roll(channels, 0))


def _transposed_matrix(tensors: Tensors) -> None:
    key = "model.layers.1.self_attn.o_proj.weight"
    tensors[key] = tensors[key].T.contiguous()


def _swapped_layers(tensors: Tensors) -> None:
    for key in [key for key in tensors if key.startswith("model.layers.0.")]:
        other = key.replace("layers.0.", "layers.2.")
        tensors[key], tensors[other] = tensors[other], tensors[key]


def _flipped_bit(tensors: Tensors) -> None:
    key = "model.layers.2.mlp.down_proj.weight"
    tensors[key] = tensors[key].clone()
    tensors[key].view(torch.int32)[5, 7] ^= 1


# name → change, the first parameter that differs, whether the logits show it too
CORRUPTIONS: dict[str, tuple[Callable[[Tensors], None], str, bool]] = {
    "rotary": (_no_rotary_reordering, "model.layers.0.self_attn.q_proj.weight", True),
    "gate and up": (_swapped_gate_and_up, "model.layers.0.mlp.gate_proj.weight", True),
    "query group": (_query_groups_off_by_one, "model.layers.0.self_attn.k_proj.weight", True),
    "transposed": (_transposed_matrix, "model.layers.1.self_attn.o_proj.weight", True),
    "layers": (_swapped_layers, "model.layers.0.input_layernorm.weight", True),
    "one bit": (_flipped_bit, "model.layers.2.mlp.down_proj.weight", False),
}
CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "rotary base": ({"rope_theta": 10000.0}, "rope_theta"),
    "scaling": ({"rope_scaling": {**LLAMA31_SCALING, "factor": 4.0}}, "rope_scaling"),
    "epsilon": ({"rms_norm_eps": 1e-3}, "norm_epsilon"),
}


def _copy(source: Path, destination: Path) -> Path:
    shutil.copytree(source, destination)
    return destination


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model `right`, its import `megatron`, and a corrupted copy for each kind of fault."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("parity")
    right = save_llama(root / "right", num_key_value_heads=GROUPS, rope_scaling=LLAMA31_SCALING)
    # The classic form, in which `rope_theta` is a separate field that can be changed alone.
    config = json.loads((right / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (right / "config.json").write_text(json.dumps(config))
    result = {"right": right, "megatron": root / "megatron"}
    hf_to_megatron.convert(right, root / "megatron")
    for name, (change, _, _) in CORRUPTIONS.items():
        folder = result[name] = _copy(right, root / name)
        tensors = read_tensors(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, (changes, _) in CONFIGURATIONS.items():
        folder = result[name] = _copy(right, root / name)
        (folder / "config.json").write_text(json.dumps(config | changes))
    return result


@pytest.fixture(scope="module")
def reports(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """A report on each folder against the Megatron checkpoint, all computed in one rank."""
    names = [name for name in folders if name != "megatron"]
    (found,) = run_ranks(
        megatron_ranks.compare, 1, [(folders[name], folders["megatron"]) for name in names], timeout=300
    )
    return dict(zip(names, found, strict=True))


def test_a_right_conversion_passes(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["right"]
    assert report["passed"]
    assert report["faults"] == []
    assert report["tensors"]["equal"] == report["tensors"]["compared"] == 9 * LAYERS + 3
    logits = report["logits"]
    assert logits["max_abs_delta"] < 1e-4
    assert logits["max_kl"] < 1e-8
    assert logits["top1_agreement"] == 1.0
    assert len(logits["languages"]) == 20
    assert len(logits["layers"]) == LAYERS + 1
    assert "transformers" in logits["library_a"]
    assert "megatron-core" in logits["library_b"]


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_wrong_weights_are_caught(reports: dict[str, dict[str, Any]], name: str) -> None:
    _, first, shows = CORRUPTIONS[name]
    report = reports[name]
    assert not report["passed"]
    assert report["tensors"]["different"][0]["name"] == first
    assert report["logits"]["passed"] is not shows


def test_one_bit_is_one_number(reports: dict[str, dict[str, Any]]) -> None:
    (different,) = reports["one bit"]["tensors"]["different"]
    assert different["numbers_different"] == 1
    assert 0 < different["max_abs_delta"] < 1e-6


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_wrong_configuration_is_caught_twice(reports: dict[str, dict[str, Any]], name: str) -> None:
    _, field = CONFIGURATIONS[name]
    report = reports[name]
    assert report["tensors"]["different"] == []
    assert report["shape_differences"][0].startswith(field)
    assert not report["logits"]["passed"]


def _every_side(right: Path, megatron: Path, ids: list[int]) -> tuple[Any, Any, Any]:
    """Logits of the whole transformers model, of transformers layer by layer, and of Megatron layer by
    layer."""
    from transformers import AutoModelForCausalLM

    from emma.checkpoints_conversion.parity.megatron_forward import MegatronForward, parallel_state_of_one
    from emma.checkpoints_conversion.parity.transformers_forward import TransformersForward
    from emma.checkpoints_conversion.weights import HuggingFaceWeights, open_weights

    def by_layers(forward: Any) -> Any:
        hidden = forward.embed([torch.tensor(ids)])
        for index in range(LAYERS):
            hidden = forward.layer(index, hidden)
        return forward.logits(hidden)[0].numpy()

    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(right)(torch.tensor([ids])).logits[0].numpy()
    with parallel_state_of_one():
        ours = by_layers(MegatronForward(open_weights(megatron)))  # type: ignore[arg-type]
    return whole, by_layers(TransformersForward(HuggingFaceWeights(right))), ours


def test_layers_add_up_to_the_model(folders: dict[str, Path]) -> None:
    """Layer by layer equals the whole model; for Megatron, the loader's tests compare with the whole
    model."""
    ids = [(7 * position + 3) % 517 for position in range(150)]
    ((whole, by_layers, megatron),) = run_ranks(_every_side, 1, folders["right"], folders["megatron"], ids)
    assert np.abs(whole - by_layers).max() < 1e-5
    assert np.abs(whole - megatron).max() < 1e-4


def test_rounding_is_compared_as_rounding(folders: dict[str, Path], tmp_path: Path) -> None:
    megatron_to_hf.convert(folders["megatron"], tmp_path / "bf16", dtype="bf16")
    ((report,),) = run_ranks(megatron_ranks.compare, 1, [(folders["megatron"], tmp_path / "bf16")])
    assert report["passed"], report["faults"]


def test_other_models_do_not_match(folders: dict[str, Path], tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", num_hidden_layers=2, num_key_value_heads=GROUPS)
    ((report,),) = run_ranks(megatron_ranks.compare, 1, [(folders["megatron"], other)])
    assert not report["passed"]
    assert report["shape_differences"][0] == "layers: 3 != 2"
    assert report["tensors"] is None


def test_text_tokenizer_and_page(folders: dict[str, Path], tmp_path: Path) -> None:
    """Comparing two Hugging Face folders does not need Megatron; the page says in words what the JSON
    says."""
    from emma.checkpoints_conversion.parity import compare, read_texts

    text = tmp_path / "text.jsonl"
    text.write_text(
        '{"text": "Grüß Gott", "language": "deu_Latn"}\n{"text": "Bonjour", "language": "fra_Latn"}\n'
    )
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    texts = read_texts(text)
    report = compare(folders["right"], folders["gate and up"], texts, tokenizer=tokenizer, mixed_length=0)
    assert [result.language for result in report.logits.languages] == ["deu_Latn", "fra_Latn"]
    assert report.logits.tokens == len("Grüß Gott".encode()) + len("Bonjour")
    assert report.logits.tokenizer == str(tokenizer)
    report.write(tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is False
    page = (tmp_path / "parity.html").read_text()
    assert "failed" in page
    assert "model.layers.0.mlp.gate_proj.weight" in page
    assert "deu_Latn" in page
    assert "http" not in page  # self-contained


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}', "x.jsonl:1: not an object with `text` and `language`"),
        ("x.jsonl", "{", "x.jsonl:1"),
        ("absent.jsonl", None, "no such file"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    from emma.checkpoints_conversion.parity import read_texts

    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name)


def test_ids_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    from emma.checkpoints_conversion.parity.texts import tokenize

    tokenizer = save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="the model has 50 ids"):
        tokenize({"x": ["zebra"]}, tokenizer, 50, 64, 0)
    with pytest.raises(UserError, match="at least two tokens"):
        tokenize({"x": ["a"]}, tokenizer, 500, 64, 0)
