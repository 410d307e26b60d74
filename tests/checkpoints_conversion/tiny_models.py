"""Small real models in Hugging Face folders, for the tests of conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LLAMA31_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that the scaling acts within the lengths that tests can afford.
    "original_max_position_embeddings": 64,
}


def save_llama(
    folder: Path, *, dtype: str = "float32", shard: str = "5GB", seed: int = 0, **changes: Any
) -> Path:
    """Writes a random `LlamaForCausalLM` with transformers' own `save_pretrained`; returns the folder.

    Args:
        folder: where it goes.
        dtype: torch's name of the type of the weights.
        shard: largest file.
        seed: of the random weights.
        changes: fields of `LlamaConfig`; the defaults are 3 layers, 8 heads, 2 query groups, 517 tokens.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 517,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        # Larger than usual, so that a wrong conversion moves the logits by much.
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # transformers begins with ones, which would hide a lost or swapped norm
                parameter.uniform_(0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder
