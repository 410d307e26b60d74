"""Small random models of each architecture, in several shapes, as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    # Large, so that a wrong function changes the logits a lot.
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 10000.0}),
    "llama tied, scaled": (
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": {**_LLAMA3, "rope_theta": 5e5}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 20}),
    "mistral, head width": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, head width": (
        "qwen3",
        {"tie_word_embeddings": True, "head_dim": 24, "num_key_value_heads": 1},
    ),
    "smollm3": ("smollm3", {}),
    "smollm3, other layers": ("smollm3", {"no_rope_layers": [1, 0, 0, 1], "tie_word_embeddings": False}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 20, "rope_scaling": _YARN, "rope_theta": 500000.0}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 8,
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 48,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma3, plain": (
        "gemma3_text",
        {
            "head_dim": 24,
            "sliding_window": 7,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "apertus": ("apertus", {"rope_parameters": {**_LLAMA3, "rope_theta": 12e6}}),
    "apertus, head groups": (
        "apertus",
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    ),
}


def build(case: str, seed: int = 0, **changes: Any) -> Any:
    """The random model of a case, in FP32: norms, biases and activations' numbers away from their start, so that a lost
    or swapped one shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = CASES[case]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**COMMON, **values, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.1, 0.6) if kind.startswith("gemma") else parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.uniform_(0.2, 0.9)
            elif parameter.numel() == 1:
                parameter.add_(torch.rand(1) * 0.5 + 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("act_fn.eps"):
                # xIELU's gradient jumps between this and 0. At the published -1e-6, rounding takes an activation to the
                # other side in one step of ten, and two right implementations differ by it.
                buffer.fill_(-1e-12)
    return model.eval()


def save(case: str, folder: Path, **changes: Any) -> Path:
    """Writes a case's model with transformers' own `save_pretrained`; returns the folder."""
    build(case, **changes).save_pretrained(folder)
    return folder
