"""The `model` section: architecture, shape and tokenizer of a model."""

from __future__ import annotations

import math
from functools import cached_property
from typing import ClassVar, Self

from pydantic import Field, model_validator

from emma.recipes.schema.architecture import (
    Architecture,
    Kind,
    Network,
    Parameter,
    Scaling,
    architecture,
    architecture_names,
)
from emma.recipes.schema.section import Section

__all__ = ["Model", "RopeScaling", "Shape", "Tokenizer"]


class RopeScaling(Section):
    """Scaling of the rotary frequencies, under Hugging Face's names."""

    type: Scaling = "llama3"
    """`llama3` divides low frequencies and keeps high ones (Llama 3.1), `linear` divides all, `yarn` (arXiv 2309.00071)
    divides low ones and makes attention sharper."""
    factor: float = Field(gt=0)
    """Divisor of the (low) frequencies (Llama 3.1: 8, Llama 3.2: 32)."""
    low_freq_factor: float = Field(1.0, gt=0)
    """llama3: wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by `factor`."""
    high_freq_factor: float = Field(4.0, gt=0)
    """llama3: wavelengths below `original_max_position_embeddings / high_freq_factor` stay as they are."""
    original_max_position_embeddings: int = Field(8192, gt=0)
    """llama3, yarn: context length of the model before scaling, in tokens."""
    beta_fast: float = Field(32.0, gt=0)
    """yarn: channels that turn more often than this within the original context stay as they are."""
    beta_slow: float = Field(1.0, gt=0)
    """yarn: channels that turn less often are divided by `factor`."""
    attention_factor: float | None = Field(None, gt=0)
    """yarn: what rotated queries and keys are multiplied by; default: 0.1 × ln(factor) + 1."""

    later: ClassVar[frozenset[str]] = frozenset({"type", "beta_fast", "beta_slow", "attention_factor"})
    constants: ClassVar[dict[str, tuple[str, ...]]] = {
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
    }
    """What each type takes; the first of its optional constants come with a default of its own."""

    @property
    def sharpening(self) -> float:
        """What rotated queries and keys are multiplied by."""
        if self.type != "yarn":
            return 1.0
        return self.attention_factor or (0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0)

    @model_validator(mode="after")
    def _constants(self) -> Self:
        for name, field in type(self).model_fields.items():
            if name not in ("type", *self.constants[self.type]) and getattr(self, name) != field.default:
                raise ValueError(f"rope scaling `{self.type}` has no {name}; remove it")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast}) must be above beta_slow ({self.beta_slow})")
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

    architecture: str = "llama"
    """The family: a file of recipes/architectures, which names parameters and switches."""
    layers: int = Field(gt=0)
    """Number of transformer layers."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    ffn_hidden_size: int = Field(gt=0)
    """Width of the feed-forward layer (`intermediate_size`)."""
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
    """RoPE scaling; none for Llama 2 and Llama 3."""
    sliding_window: int | None = Field(None, gt=0)
    """Tokens that a token of a sliding layer sees, itself included."""
    layer_kinds: list[Kind] | None = Field(None, min_length=1)
    """Kinds of the layers in turn, repeated: `full`, `sliding`, `nope` (full, without rotary embedding). Default: all
    `sliding` where `sliding_window` is given, else all `full`."""
    rope_theta_sliding: float | None = Field(None, gt=0)
    """Base of the rotary embedding in sliding layers; default: `rope_theta`."""
    query_scale: float | None = Field(None, gt=0)
    """Attention scores are divided by its square root; default: `head_dim`."""
    norm_epsilon: float = Field(1e-5, gt=0)
    """Epsilon of RMSNorm."""
    tie_embeddings: bool = False
    """Whether input and output embedding are one matrix."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of new weights (`initializer_range`); continual pre-training starts from the base's weights."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"architecture", "sliding_window", "layer_kinds", "rope_theta_sliding", "query_scale"}
    )

    @property
    def design(self) -> Architecture:
        """The architecture's file."""
        return architecture(self.architecture)

    @property
    def network(self) -> Network:
        """The architecture's switches."""
        return self.design.network

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each layer."""
        pattern: list[Kind] = self.layer_kinds or ["full" if self.sliding_window is None else "sliding"]
        return tuple(pattern[index % len(pattern)] for index in range(self.layers))

    @property
    def score_scale(self) -> float:
        """What attention scores are divided by the root of."""
        return float(self.channels if self.query_scale is None else self.query_scale)

    def rope(self, kind: Kind) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary embedding in layers of a kind."""
        if kind == "sliding" and self.network.rope == "by_kind":
            return self.rope_theta_sliding or self.rope_theta, None
        return self.rope_theta, self.rope_scaling

    def size(self, word: str | int) -> int:
        """A size of the architecture's file, in numbers."""
        return word if isinstance(word, int) else self._sizes[word]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {
            "hidden": self.hidden_size,
            "queries": self.attention_heads * self.channels,
            "keys": self.query_groups * self.channels,
            "channels": self.channels,
            "ffn": self.ffn_hidden_size,
            "vocab": self.vocab_size,
        }

    def sizes(self, row: Parameter) -> tuple[int, ...]:
        """Sizes of a parameter in transformers."""
        return tuple(self.size(word) for word in row.sizes)

    @property
    def outside(self) -> dict[str, Parameter]:
        """Rows of the architecture's file for what is outside of the layers, without what tied embeddings leave out."""
        rows = self.design.outside.items()
        return {name: row for name, row in rows if not (row.unless == "tied" and self.tie_embeddings)}

    @property
    def layer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Sizes of a layer's tensors in Megatron, by what follows `decoder.layers.`; query, key and value are one tensor,
        gate and up are one."""
        result: dict[str, tuple[int, ...]] = {}
        for row in self.design.layer.values():
            sizes = self.sizes(row)
            if row.key in result:
                sizes = (result[row.key][0] + sizes[0], *sizes[1:])
            result[row.key] = sizes
        return result

    def checkpoint_tensors(self, vocabulary_rows: int) -> dict[str, tuple[int, ...]]:
        """Sizes of a checkpoint's tensors by Megatron's names, stacked over layers.

        Args:
            vocabulary_rows: rows of the embedding including padding.
        """
        layers = {f"decoder.layers.{key}": (self.layers, *sizes) for key, sizes in self.layer_tensors.items()}
        others = {
            row.key: tuple(vocabulary_rows if word == "vocab" else self.size(word) for word in row.sizes)
            for row in self.outside.values()
        }
        return layers | others

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
        self._fits_architecture()
        return self

    def _fits_architecture(self) -> None:
        network, keys = self.network, self.design.huggingface.keys
        for name in sorted(self.later - {"architecture"}):
            if getattr(self, name) is not None and name not in keys:
                having = [
                    other for other in architecture_names() if name in architecture(other).huggingface.keys
                ]
                raise ValueError(
                    f"`{name}` is not a key of architecture {self.architecture}; {', '.join(having)} have it"
                )
        # Of the pattern: a proof may build fewer layers than it names.
        kinds = set(self.layer_kinds or self.kinds)
        if unknown := sorted(kinds - set(network.kinds)):
            raise ValueError(
                f"architecture {self.architecture} has no `{unknown[0]}` layers; it has {', '.join(network.kinds)}"
            )
        if ("sliding" in kinds) != (self.sliding_window is not None):
            raise ValueError("sliding_window and `sliding` layers go together; give both or neither")
        if self.rope_scaling is not None and self.rope_scaling.type not in network.rope_scaling:
            raise ValueError(
                f"architecture {self.architecture} has no RoPE scaling `{self.rope_scaling.type}`; it has "
                f"{', '.join(network.rope_scaling) or 'none'}"
            )


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
