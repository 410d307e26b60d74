"""FLOPs per token against the published figures and against Megatron's own count."""

from __future__ import annotations

import pytest

from emma.recipes.load import load_recipe, load_section
from emma.tools.arithmetic.flops import attention_flops_per_token, flops_per_token


@pytest.mark.parametrize(("convention", "gflop"), [("causal", 51.47), ("full", 57.91)])
def test_llama_3_8b_at_8k(convention: str, gflop: float) -> None:
    model = load_section("model", "llama3_8b")
    assert flops_per_token(model, 8192, convention) / 1e9 == pytest.approx(gflop, abs=0.005)  # type: ignore[arg-type]


def test_published_tflops_follow_from_published_tokens() -> None:
    model = load_section("model", "llama3_8b")
    # Megatron-Bridge 25.11: 14,451 tokens/s are 744 TFLOP/s (causal); Swallow: 8,563 are 495.9 (full).
    assert 14451 * flops_per_token(model, 8192, "causal") / 1e12 == pytest.approx(744, abs=0.5)
    assert 8563 * flops_per_token(model, 8192, "full") / 1e12 == pytest.approx(495.9, abs=0.5)


def test_attention_grows_with_the_sequence_and_the_rest_does_not() -> None:
    model = load_section("model", "llama2_7b")
    short, long = (flops_per_token(model, length) for length in (4096, 8192))
    assert long - short == attention_flops_per_token(model, 4096)
    assert attention_flops_per_token(model, 4096, "full") == 2 * attention_flops_per_token(model, 4096)


def test_heads_may_be_narrower_or_wider_than_the_model() -> None:
    """8 heads of 24 channels, 192, on a model of 128: Q, K, V and the output projection are not square."""
    changes = {"hidden_size": 128, "attention_heads": 8, "query_groups": 2, "head_dim": 24, "layers": 3}
    model = load_section("model", "llama3_8b").model_copy(update=changes)
    scores_and_values = 2 * 192 * 1024  # multiply-adds of one query with 1,024 keys, and with as many values
    assert attention_flops_per_token(model, 1024, "full") == 3 * 2 * 3 * scores_and_values
    weights = 3 * (128 * (192 + 2 * 48) + 192 * 128 + 3 * 128 * 14_336) + 128_256 * 128
    assert flops_per_token(model, 1024, "full") == 6 * weights + 18 * scores_and_values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2_7b", "llama3_8b", "llama3_8b model.head_dim=96"])
def test_causal_is_what_megatron_logs(name: str) -> None:
    """Imports `megatron.training`, hence slow."""
    from emma import megatron_patches

    megatron_patches.apply()
    from argparse import Namespace

    from megatron.training.training import num_floating_point_operations

    recipe = load_recipe("emma_llama3_8b_bi", [*f"model={name}".split(), "batch.sequence_length=4096"])
    model = recipe.model

    class Arguments(Namespace):
        """What Megatron's parser would set for a plain dense model: everything else is off."""

        def __getattr__(self, name: str) -> None:
            return None

    arguments = Arguments(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.attention_heads,
        num_query_groups=model.query_groups,
        group_query_attention=True,
        kv_channels=model.channels,
        seq_length=4096,
        padded_vocab_size=model.vocab_size,
        swiglu=True,
        multi_latent_attention=False,
    )
    ours = flops_per_token(model, 4096) * 8 * 4096
    assert ours == pytest.approx(num_floating_point_operations(arguments, 8), rel=1e-9)


def test_windows_by_hand() -> None:
    """Gemma 3 4B at 8,192 tokens: of 34 layers, 5 are full, 29 see 1,024 tokens. Queries × keys and probabilities × values,
    two operations each, three times for forward and backward: 12 × width × scores of a layer over the sequence."""
    model = load_section("model", "gemma3_4b")
    assert (model.kinds.count("full"), model.kinds.count("sliding")) == (5, 29)
    full, window = 8192**2 / 2, sum(min(position, 1024) for position in range(1, 8193))
    # Half of the square is the causal convention's count of the triangle; a window is counted exactly.
    expected = 12 * 8 * 256 * (5 * full + 29 * window) / 8192
    assert attention_flops_per_token(model, 8192) == pytest.approx(expected, rel=1e-12)
    assert flops_per_token(model, 8192) == pytest.approx(24.5e9, rel=2e-3)
    # A window that no token reaches the end of changes nothing.
    assert attention_flops_per_token(model, 512) == 12 * 8 * 256 * 34 * 512 / 2
