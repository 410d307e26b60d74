"""Parameter counts: whole models, and what the ranks of a layout hold of them."""

from __future__ import annotations

import itertools

import pytest

from emma.recipes.compose import list_names
from emma.recipes.load import load_section
from emma.tools.arithmetic.parameters import layer_parameters, rank_parameters, total_parameters


@pytest.mark.parametrize("name", ["llama2_7b", "llama3_8b", "llama3.1_8b"])
@pytest.mark.parametrize(("tensor", "pipeline"), list(itertools.product((1, 2, 4, 8), (1, 2, 4))))
def test_ranks_hold_the_model_once_and_norms_once_per_tensor_rank(
    name: str, tensor: int, pipeline: int
) -> None:
    model = load_section("model", name)
    stages = [rank_parameters(model, tensor, pipeline, stage) for stage in range(pipeline)]
    assert tensor * sum(stage.layers + stage.tables for stage in stages) + sum(
        stage.norms for stage in stages
    ) == total_parameters(model)


def test_tied_embeddings_are_one_matrix_on_one_stage_and_two_copies_on_more() -> None:
    model = load_section("model", "llama3_8b").model_copy(update={"tie_embeddings": True})
    table = model.vocab_size * model.hidden_size
    assert rank_parameters(model, 1, 1, 0).tables == table
    assert [rank_parameters(model, 1, 2, stage).tables for stage in (0, 1)] == [table, table]
    assert total_parameters(model) == 8_030_261_248 - table


def test_padding_counts_where_it_exists() -> None:
    model = load_section("model", "llama3_8b").model_copy(update={"vocab_padding": 128})
    assert rank_parameters(model, 4, 2, 0).tables == 128_512 // 4 * 4096


def test_layer_of_llama_3_8b() -> None:
    layer = layer_parameters(load_section("model", "llama3_8b"))
    assert layer.attention == 4096 * (4096 + 2 * 1024) + 4096 * 4096
    assert layer.mlp == 3 * 4096 * 14_336
    assert layer.norm == 2 * 4096


@pytest.mark.parametrize(
    "name", [name for name in list_names("models") if not name.endswith(("70b", "32b", "27b"))]
)
def test_every_shipped_model_is_as_large_as_transformers_makes_it(name: str) -> None:
    _as_large(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in list_names("models") if name.endswith(("70b", "32b", "27b"))]
)
def test_every_large_model_too(name: str) -> None:
    _as_large(name)


def _as_large(name: str) -> None:
    """By `config.json` as an export writes it, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from emma.checkpoints_conversion.config import TokenIds, hf_config

    model = load_section("model", name)
    values = hf_config(model, dtype="bfloat16", tokens=TokenIds())
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert built.num_parameters() == total_parameters(model)


def test_every_switch_counts_in_a_layer() -> None:
    """By hand: biases of Qwen2.5 7B, norms of Gemma 3 4B, and Apertus 8B without a gate but with two numbers."""
    qwen, gemma, apertus = (
        layer_parameters(load_section("model", name)) for name in ("qwen2.5_7b", "gemma3_4b", "apertus_8b")
    )
    assert qwen.bias == 3584 + 2 * 512
    assert gemma.norm == 4 * 2560 + 2 * 256
    assert (apertus.mlp, apertus.norm) == (2 * 4096 * 21_504, 2 * 4096 + 2 * 128 + 2)
    assert rank_parameters(load_section("model", "qwen2.5_7b"), 4, 2, 0).biases == 14 * qwen.bias // 4
