"""Stock Megatron loads imports with the arguments in their manifest, and its own checkpoints need no recipe."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.checkpoints_conversion.config import model_from_hf
from emma.checkpoints_conversion.stock_megatron import architecture, loading, shape_of, stored_arguments
from emma.recipes.schema.model import RopeScaling, Shape
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import (
    describe_run,
    read_tensors,
    same_bits,
    save_llama,
    save_tokenizer,
)
from tests.ranks import run_ranks

TOKENS = [[(position * 37) % 517 for position in range(200)]]
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama 3.1": {"rope_scaling": LLAMA31, "num_key_value_heads": 2},
    "odd": {
        "tie_word_embeddings": True,
        "head_dim": 16,
        "rms_norm_eps": 1e-3,
        "rope_theta": 1000.0,
        "num_key_value_heads": 8,
    },
}


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Per kind of model: its import, and transformers' logits."""
    from transformers import AutoModelForCausalLM

    result = {}
    for kind, changes in MODELS.items():
        folder = tmp_path_factory.mktemp("imports")
        # Small weights at the input, so that the logits depend on attention and its positions.
        source = save_llama(folder / "hf", initializer_range=0.2, **changes)
        hf_to_megatron.convert(source, folder / "megatron")
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(source)(torch.tensor(TOKENS)).logits.numpy()
        result[kind] = (folder / "megatron", logits)
    return result


def _stock(arguments: list[str], folder: Path) -> Any:
    (computed,) = run_ranks(megatron_ranks.stock_logits, 1, arguments, folder, TOKENS, 517, patched=False)
    return computed


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_manifests_arguments_load_it_right(imports: dict[str, tuple[Path, Any]], kind: str) -> None:
    folder, expected = imports[kind]
    record = Manifest.read(folder).extra["stock_megatron"]
    assert record["why_not"] is None
    assert np.abs(_stock(record["arguments"], folder) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "flag", "values"),
    [("llama 3.1", "--use-rope-scaling", 0), ("odd", "--norm-epsilon", 1)],
)
def test_an_argument_less_is_noticed(
    imports: dict[str, tuple[Path, Any]], kind: str, flag: str, values: int
) -> None:
    """These two are what `--use-checkpoint-args` leaves out: wrong logits without a word."""
    folder, expected = imports[kind]
    arguments = list(Manifest.read(folder).extra["stock_megatron"]["arguments"])
    position = arguments.index(flag)
    del arguments[position : position + 1 + values]
    assert np.abs(_stock(arguments, folder) - expected).max() > 1e-3


def test_models_that_stock_megatron_cannot_load() -> None:
    shape = Shape(
        layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        attention_heads=8,
        query_groups=2,
        vocab_size=517,
        max_position_embeddings=256,
        rope_scaling=RopeScaling(factor=32.0),
    )
    assert loading(shape)["arguments"] is None
    assert "factor=32.0" in loading(shape)["why_not"]
    fraction = shape.model_copy(update={"rope_scaling": None, "rope_theta": 10.5})
    assert "--rotary-base is a whole number" in loading(fraction)["why_not"]
    assert loading(fraction.model_copy(update={"rope_theta": 10.0}))["why_not"] is None


def _arguments(**changes: Any) -> Namespace:
    shape = Shape(
        layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        attention_heads=8,
        query_groups=2,
        vocab_size=517,
        max_position_embeddings=256,
    )
    values = vars(architecture(shape)) | {"vocab_size": 517, "init_method_std": 0.02} | changes
    return Namespace(**{name: value for name, value in values.items() if value != "absent"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 8}, "num_experts is 8"),
        ({"normalization": "LayerNorm"}, "normalization is 'LayerNorm'"),
        ({"normalization": "absent"}, "normalization is missing"),
        ({"swiglu": "absent"}, "swiglu is missing"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"add_qkv_bias": True}, "add_qkv_bias is True"),
        ({"qk_layernorm": True}, "qk_layernorm is True"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type is"),
        ({"rotary_percent": 0.5}, r"rotary_percent is 0\.5"),
        ({"mtp_num_layers": 1}, "mtp_num_layers is 1"),
        ({"vocab_size": None}, r"vocab_size \(the tokenizer had it: pass --tokenizer\)"),
        ({"num_layers": "absent"}, "does not carry Megatron's argument num_layers"),
        ({"num_layers": 10**9}, "`num_layers` is 1000000000: at most 1,000"),
        ({"num_layers": "2"}, "`num_layers` is '2'"),
        ({"norm_epsilon": None, "layernorm_epsilon": None}, "argument norm_epsilon"),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, r"rope_scaling_factor is 32\.0"),
    ],
)
def test_arguments_of_other_models(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        shape_of(_arguments(**changes), tmp_path, None)
    assert "\n" not in str(caught.value)


def test_arguments_of_llamas(tmp_path: Path) -> None:
    plain = shape_of(_arguments(), tmp_path, None)
    assert (plain.layers, plain.query_groups, plain.vocab_size, plain.rope_scaling) == (2, 2, 517, None)
    assert shape_of(_arguments(vocab_size=None), tmp_path, 500).vocab_size == 500
    assert shape_of(_arguments(), tmp_path, 500).vocab_size == 517
    padded = _arguments(vocab_size=None, padded_vocab_size=768, tensor_model_parallel_size=2)
    assert shape_of(padded, tmp_path, 517).vocab_size == 517
    with pytest.raises(UserError, match="the tokenizer has 500 ids, which Megatron would pad to 512, but"):
        shape_of(padded, tmp_path, 500)
    assert shape_of(_arguments(group_query_attention=False), tmp_path, None).query_groups == 8
    scaled = shape_of(_arguments(use_rope_scaling=True), tmp_path, None)
    assert scaled.rope_scaling == RopeScaling(factor=8.0)


def _forget(run: Path) -> None:
    """Leaves what stock Megatron writes: no marks, no recipe."""
    (run / "recipe.yaml").unlink(missing_ok=True)
    for mark in run.rglob("complete.json"):
        mark.unlink()


@pytest.mark.parametrize(
    "flags",
    [
        ("--ckpt-format", "torch_dist"),
        pytest.param(("--ckpt-format", "torch"), marks=pytest.mark.slow),
    ],
    ids=["torch_dist", "torch"],
)
def test_a_checkpoint_of_stock_megatron_describes_itself(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The shape comes from the arguments that Megatron stored, and the export is that with a recipe."""
    changes = {"num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-4, "rope_theta": 1000.0}
    source = save_llama(tmp_path / "hf", num_hidden_layers=4, **changes)
    shape = model_from_hf(source)
    run, layout = (
        tmp_path / "run",
        ("--tensor-model-parallel-size", "2", "--dist-ckpt-optim-fully-reshardable"),
    )
    run_ranks(megatron_ranks.train, 2, shape, None, run / "checkpoints", *layout, *flags)
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    describe_run(run, shape, tokenizer)
    megatron_to_hf.convert(run, tmp_path / "described")
    _forget(run)
    assert find_checkpoint(run).shape.model_dump() == shape.model_dump() | {"init_std": 0.02}
    manifest = megatron_to_hf.convert(run, tmp_path / "alone", tokenizer=tokenizer)
    assert same_bits(read_tensors(tmp_path / "described"), read_tensors(tmp_path / "alone"))
    for name in ("config.json", "generation_config.json"):
        described, alone = ((tmp_path / folder / name).read_text() for folder in ("described", "alone"))
        assert described.replace('"initializer_range": 0.1', "") == alone.replace(
            '"initializer_range": 0.02', ""
        )
    assert manifest.extra["weights"] == "model"
    bare = megatron_to_hf.convert(run, tmp_path / "bare")
    assert not any("tokenizer" in record.path for record in bare.outputs)


def test_an_import_that_lost_its_description(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    hf_to_megatron.convert(source, tmp_path / "megatron")
    folder = tmp_path / "megatron" / "iter_0000000"
    assert stored_arguments(folder).num_layers == 3  # type: ignore[union-attr]
    (folder / "model.yaml").unlink()
    (folder / "complete.json").write_text('{"files": {}}')
    for tokenizer in (None, save_tokenizer(tmp_path / "tokenizer")):
        with pytest.raises(UserError, match=r"neither model\.yaml in it nor .*recipe\.yaml"):
            megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "out", tokenizer=tokenizer)


def test_pickles_in_the_common_state_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("attacked",)

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "iter_0000002"
    folder.mkdir()
    torch.save({"args": Namespace(num_layers=Attack())}, folder / "common.pt")
    with pytest.raises(UserError, match=r"mkdir, which no checkpoint needs"):
        stored_arguments(folder)
    assert not (tmp_path / "attacked").exists()
    (folder / "common.pt").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="common state cannot be read"):
        stored_arguments(folder)
