"""RoPE scaling constants against transformers' rope type `llama3`."""

from __future__ import annotations

from typing import Any

import pytest

from emma.megatron_patches.rope_scaling import RopeScaling, set_rope_scaling
from tests.megatron_patches.small_run import apply_without
from tests.ranks import RanksError, run_ranks

THETA, HEAD = 500000, 64
LLAMA_3_1 = RopeScaling(8.0, 1.0, 4.0, 8192)
OTHERS = [
    RopeScaling(32.0, 1.0, 4.0, 8192),
    RopeScaling(4.0, 1.5, 8.0, 2048),
    RopeScaling(2.0, 0.5, 3.0, 512),
]


def megatron_frequencies(
    scalings: list[RopeScaling | None], through_model_config: bool, on: bool
) -> list[list[float]]:
    """Inverse frequencies of models built one after another with these constants, None for Megatron's own."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig
    from megatron.training.models import GPTModelConfig

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    found = []
    for scaling in scalings:
        config = TransformerConfig(
            num_layers=1, hidden_size=2 * HEAD, num_attention_heads=2, use_cpu_initialization=True,
            normalization="RMSNorm", persist_layer_norm=False,
        )  # fmt: skip
        if scaling is not None:
            set_rope_scaling(GPTModelConfig(transformer=config) if through_model_config else config, scaling)
        model = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=16,
            max_sequence_length=16,
            position_embedding_type="rope",
            rotary_base=THETA,
            rope_scaling=on,
        )
        found.append(model.rotary_pos_emb.inv_freq.tolist())
    return found


def frequencies_without_the_patch(scalings: list[RopeScaling | None]) -> list[list[float]]:
    apply_without("rope-scaling")
    return megatron_frequencies(scalings, False, True)


def transformers_frequencies(scaling: RopeScaling) -> list[float]:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": float(THETA),
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
    config = LlamaConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    frequencies: list[float] = LlamaRotaryEmbedding(config).inv_freq.tolist()
    return frequencies


def test_without_the_patch_the_constants_are_llama_3_1s_whatever_the_configuration_says() -> None:
    (found,) = run_ranks(frequencies_without_the_patch, 1, [OTHERS[1]], patched=False)
    assert found == [transformers_frequencies(LLAMA_3_1)]
    assert found != [transformers_frequencies(OTHERS[1])]


@pytest.mark.parametrize("through_model_config", [False, True])
def test_frequencies_are_those_of_transformers(through_model_config: bool) -> None:
    scalings = [LLAMA_3_1, *OTHERS, None]
    (found,) = run_ranks(megatron_frequencies, 1, scalings, through_model_config, True)
    expected = [transformers_frequencies(scaling) for scaling in (LLAMA_3_1, *OTHERS, LLAMA_3_1)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-7)
    assert len({tuple(frequencies) for frequencies in found}) == 4


def test_constants_for_a_model_without_scaling_are_an_error() -> None:
    with pytest.raises(RanksError, match="built with rope_scaling=False"):
        run_ranks(megatron_frequencies, 1, [LLAMA_3_1], False, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.5},
        {"low_freq_factor": 0.0},
        {"high_freq_factor": 1.0},
        {"original_max_position_embeddings": 0},
    ],
)
def test_constants_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rope scaling needs"):
        RopeScaling(**wrong)
