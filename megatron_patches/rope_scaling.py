"""Llama 3.1's RoPE scaling with all four constants taken from the model's configuration.

In Megatron the factor is a parameter of the model that no command-line argument reaches; the other three (low and high
frequency factor, original context) are defaults that no caller overrides.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH", "RopeScaling", "set_rope_scaling"]

APPLY_SCALING = Target(
    "megatron.core.models.common.embeddings.rotary_pos_embedding:RotaryEmbedding._apply_scaling",
    "self freqs factor low_freq_factor high_freq_factor original_max_position_embeddings",
)
GPT_INIT = Target(
    "megatron.core.models.gpt.gpt_model:GPTModel.__init__",
    "self config transformer_layer_spec vocab_size max_sequence_length pre_process post_process fp16_lm_cross_entropy "
    "parallel_output share_embeddings_and_output_weights position_embedding_type rotary_percent rotary_base "
    "rope_scaling rope_scaling_factor scatter_embedding_sequence_parallel seq_len_interpolation_factor "
    "mtp_block_spec pg_collection vp_stage",
)
ATTRIBUTE = "emma_rope_scaling"


@dataclass(frozen=True)
class RopeScaling:
    """The constants of transformers' rope type `llama3`, under its names.

    Args:
        factor: wavelengths above original_max_position_embeddings / low_freq_factor grow by it.
        low_freq_factor: see factor.
        high_freq_factor: wavelengths below original_max_position_embeddings / high_freq_factor stay; between the two
            bounds the frequencies are interpolated.
        original_max_position_embeddings: context length of the model before scaling, in tokens.

    Raises:
        ValueError: the formula is not defined for these constants.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or self.low_freq_factor <= 0 or self.original_max_position_embeddings <= 0:
            raise ValueError(f"rope scaling needs factor >= 1 and positive constants, not {self}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"rope scaling needs high_freq_factor > low_freq_factor, not {self}")


_current: ContextVar[RopeScaling | None] = ContextVar("rope_scaling", default=None)


def set_rope_scaling(config: Any, scaling: RopeScaling) -> None:
    """Makes models built from `config` use these constants; without this call Megatron's own (8, 1, 4, 8192) apply.

    Args:
        config: a TransformerConfig, or a GPTModelConfig that holds one; the model must be built with rope_scaling on.
        scaling: the constants.
    """
    setattr(getattr(config, "transformer", config), ATTRIBUTE, scaling)


def install() -> None:
    """Makes the model's constructor pass the configuration's constants to the rotary embedding it creates."""
    scale, init = APPLY_SCALING.get(), GPT_INIT.get()

    @functools.wraps(scale)
    def apply_scaling(self: Any, freqs: Any, *args: Any, **kwargs: Any) -> Any:
        constants = _current.get()
        if constants is None:
            return scale(self, freqs, *args, **kwargs)
        return scale(
            self,
            freqs,
            factor=constants.factor,
            low_freq_factor=constants.low_freq_factor,
            high_freq_factor=constants.high_freq_factor,
            original_max_position_embeddings=constants.original_max_position_embeddings,
        )

    @functools.wraps(init)
    def gpt_init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        constants = getattr(config, ATTRIBUTE, None)
        token = _current.set(constants)
        try:
            init(self, config, *args, **kwargs)
        finally:
            _current.reset(token)
        if constants is not None and not self.rotary_scaling:
            raise ValueError(
                f"the configuration carries {constants}, but the model is built with rope_scaling=False"
            )

    APPLY_SCALING.replace(apply_scaling)
    GPT_INIT.replace(gpt_init)


def condition(machine: Machine) -> Decision:
    """Always on: it changes nothing for a configuration without constants of its own."""
    return Decision(True, "takes effect for models whose configuration carries constants")


PATCH = Patch(
    name="rope-scaling",
    targets=(APPLY_SCALING, GPT_INIT),
    versions={"megatron-core": ("0.19.2",)},
    reason="of Llama 3.1's four RoPE scaling constants only the factor is a parameter, and no argument reaches it",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/models/common/embeddings/"
    "rotary_pos_embedding.py",
    condition=condition,
    install=install,
)
