"""Small real models in Hugging Face folders, for the conversion tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from emma.recipes.schema.model import Shape

LLAMA31_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that the scaling takes effect within lengths that tests can afford.
    "original_max_position_embeddings": 64,
}


def save_llama(
    folder: Path, *, dtype: str = "float32", shard: str = "5GB", seed: int = 0, **changes: Any
) -> Path:
    """Writes a random `LlamaForCausalLM` with transformers' own `save_pretrained`; returns the folder.

    Args:
        folder: where it goes.
        dtype: torch's name of the weights' type.
        shard: maximum file size.
        seed: seed of the random weights.
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
        # Larger than usual, so that a wrong conversion changes the logits a lot.
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    # A copy, since the configuration modifies its arguments.
    model = LlamaForCausalLM(LlamaConfig(**copy.deepcopy(settings | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                "norm" in name
            ):  # transformers initialises norms with ones, which would hide a lost or swapped norm
                parameter.uniform_(0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_tokenizer(folder: Path, *, vocab_size: int = 500) -> Path:
    """Writes a byte-level tokenizer with `<|begin|>`, `<|end|>`, and `<|pad|>` as its last ids; returns the
    folder."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    for index in range(len(alphabet), vocab_size - 3):
        vocabulary[f"unused{index}"] = index
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|pad|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        # Both forms found in such files: the text alone, and a record.
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "pad_token": "<|pad|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def describe_run(run: Path, shape: Shape, tokenizer: Path, **section: Any) -> None:
    """Writes a run folder's `recipe.yaml` with its section `model`; `section` changes that of the
    tokenizer."""
    from ruamel.yaml import YAML

    tokens = {"path": str(tokenizer), "begin_of_text": "<|begin|>", "end_of_text": "<|end|>"}
    model = shape.model_dump(include=set(Shape.model_fields)) | {
        "name": "tiny",
        "tokenizer": tokens | section,
    }
    with (run / "recipe.yaml").open("w") as handle:
        handle.write(f"# Resolved recipe of test; sha256 {'ab' * 32}\n")
        YAML(typ="safe").dump({"model": model}, handle)


def read_tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a folder's safetensors files, read with the safetensors library."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two sets of tensors have the same names, types, sizes, and bits."""
    import torch

    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
