"""The `model` section: shape and tokenizer of a Llama-family model."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

__all__ = ["Model", "RopeScaling", "Shape", "Tokenizer"]


class RopeScaling(Section):
    """Llama 3.1's frequency-dependent scaling (`rope_type: llama3` in Hugging Face configs)."""

    factor: float = Field(gt=0)
    """Divisor of the low frequencies (Llama 3.1: 8, Llama 3.2: 32)."""
    low_freq_factor: float = Field(1.0, gt=0)
    """Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by `factor`."""
    high_freq_factor: float = Field(4.0, gt=0)
    """Wavelengths below `original_max_position_embeddings / high_freq_factor` stay as they are."""
    original_max_position_embeddings: int = Field(8192, gt=0)
    """Context length of the model before scaling, in tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        return self


class Tokenizer(Section):
    """Where the tokenizer's files are, and which of its tokens begin and end a document."""

    path: str
    """Folder with Hugging Face tokenizer files (`tokenizer.json`, ...). Relative paths start at the working folder."""
    begin_of_text: str | None = None
    """Token before each document, e.g. `<|begin_of_text|>`; default: none."""
    end_of_text: str
    """Token after each document: Megatron's end of document and the released model's `eos_token`."""
    sha256: str | None = None
    """SHA-256 of `tokenizer.json`; if given, any other file is refused."""


class Shape(Section):
    """The part of a model that its checkpoints depend on. Names follow Megatron."""

    layers: int = Field(gt=0)
    """Number of transformer layers."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    ffn_hidden_size: int = Field(gt=0)
    """Width of the SwiGLU feed-forward layer (`intermediate_size`)."""
    attention_heads: int = Field(gt=0)
    """Number of query heads."""
    query_groups: int = Field(gt=0)
    """Number of key/value heads (`num_key_value_heads`): 1 is multi-query, `attention_heads` is full attention."""
    head_dim: int | None = Field(None, gt=0)
    """Channels per head; default: `hidden_size / attention_heads`."""
    vocab_size: int = Field(gt=0)
    """Number of token ids in tokenizer and embedding, without padding."""
    vocab_padding: int = Field(128, gt=0)
    """The embedding is padded to a multiple of this times the tensor-parallel size (Megatron's
    `--make-vocab-size-divisible-by`). Padding exists only in checkpoints: conversion removes it."""
    max_position_embeddings: int = Field(gt=0)
    """Longest context that the released model declares, in tokens."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's RoPE scaling; none for Llama 2 and Llama 3."""
    norm_epsilon: float = Field(1e-5, gt=0)
    """Epsilon of RMSNorm."""
    tie_embeddings: bool = False
    """Whether input and output embedding are one matrix."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of new weights (`initializer_range`); continual pre-training starts from the base's weights."""

    @property
    def channels(self) -> int:
        """Channels per head."""
        return self.head_dim if self.head_dim is not None else self.hidden_size // self.attention_heads

    def padded_vocab_size(self, tensor: int) -> int:
        """Rows of the embedding in a checkpoint written at tensor-parallel size `tensor`."""
        multiple = self.vocab_padding * tensor
        return -(-self.vocab_size // multiple) * multiple

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of attention_heads ({self.attention_heads}); "
                "change one or give head_dim"
            )
        if self.attention_heads % self.query_groups:
            raise ValueError(
                f"attention_heads ({self.attention_heads}) is not a multiple of query_groups ({self.query_groups})"
            )
        if self.channels % 2:
            raise ValueError(
                f"head_dim ({self.channels}) must be even: rotary embeddings rotate pairs of channels"
            )
        return self


class Model(Shape):
    """A model: shape, tokenizer and origin. Each shipped file names its Hugging Face config as the source."""

    name: str
    """Name of the recipe file, e.g. `llama3_8b`."""
    tokenizer: Tokenizer
    """The tokenizer and its document boundaries."""
    huggingface: str | None = None
    """Name of the base model on the Hugging Face Hub, for cards and lineage."""
    license: str = "apache-2.0"
    """Licence identifier of the base model on the Hub (`llama2`, `llama3`, `llama3.1`), for the release."""
