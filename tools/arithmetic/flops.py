"""Floating-point operations per token, by the two conventions in use."""

from __future__ import annotations

from typing import Literal

from emma.recipes.schema.model import Shape
from emma.tools.arithmetic.parameters import matmul_parameters

__all__ = ["Convention", "attention_flops_per_token", "flops_per_token"]

Convention = Literal["causal", "full"]

_FORWARD_AND_BACKWARD = 3  # the backward pass multiplies once for the inputs, once for the weights
_MULTIPLY_AND_ADD = 2


def attention_flops_per_token(model: Shape, sequence_length: int, convention: Convention = "causal") -> float:
    """FLOPs of the attention core (queries × keys, probabilities × values) per token, forward and backward.

    `full` counts the whole square of scores of every layer, `causal` the half that causal attention needs, and of a
    layer with a window what lies in it: W·s − W(W−1)/2 scores for a window of W < s tokens. With document
    masking, documents shorter than the sequence need even less; both conventions ignore that, as published
    figures do.
    """
    width, length = model.attention_heads * model.channels, sequence_length
    per_score = 2 * _MULTIPLY_AND_ADD * _FORWARD_AND_BACKWARD * width
    square = per_score * model.layers * length
    window = model.sliding_window or length
    if convention == "full" or window >= length:
        return square / 2 if convention == "causal" else float(square)
    sliding = model.kinds.count("sliding")
    scores = window * length - window * (window - 1) / 2
    return per_score * ((model.layers - sliding) * length / 2 + sliding * scores / length)


def flops_per_token(model: Shape, sequence_length: int, convention: Convention = "causal") -> float:
    """Model FLOPs per training token, forward and backward, without recomputation.

    6 × the weights of matrix products (including the output layer, not the input embedding, which is a
    look-up) plus the attention core. Llama 3 8B at 8,192 tokens: 51.5e9 causal, 57.9e9 full. Megatron's own
    log and NVIDIA's published numbers since 2025 use the causal figure, older logs the full one.

    Args:
        model: shape of the network.
        sequence_length: tokens per sequence.
        convention: how the attention core is counted (see `attention_flops_per_token`).
    """
    linear = _MULTIPLY_AND_ADD * _FORWARD_AND_BACKWARD * matmul_parameters(model)
    return linear + attention_flops_per_token(model, sequence_length, convention)
