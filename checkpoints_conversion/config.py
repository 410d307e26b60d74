"""Hugging Face's `config.json` ⇄ a recipe's model shape. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.schema.model import RopeScaling, Shape

__all__ = [
    "TokenIds",
    "check_same_shape",
    "generation_config",
    "hf_config",
    "model_from_hf",
    "shape_differences",
    "token_ids_from_hf",
]

# Fields that affect the weights or their meaning; the others (context length, initialisation, padding) may
# differ between a base model and the recipe that continues its training.
_SAME = (
    "layers",
    "hidden_size",
    "ffn_hidden_size",
    "attention_heads",
    "query_groups",
    "channels",
    "vocab_size",
    "rope_theta",
    "rope_scaling",
    "norm_epsilon",
    "tie_embeddings",
)
_SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class TokenIds:
    """Special tokens of a released model.

    Args:
        begin: token that generation starts from; None if the model has none.
        end: tokens that end generation.
        pad: padding token; None if the model has none.
    """

    begin: int | None = None
    end: tuple[int, ...] = ()
    pad: int | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TokenIds:
        """Reads `begin`, `end` (a list), and `pad`."""
        return cls(value["begin"], tuple(value["end"]), value["pad"])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON."""
        return {**asdict(self), "end": list(self.end)}


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "config.json"
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__} instead of an object; copy the file again")
    return path, value


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what Megatron's Llama cannot express, with one specific message per case."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"{path}: `{key}` is {config.get(key)!r}: {why}")

    if config.get("model_type") != "llama":
        refuse("model_type", "only models of type `llama` can be converted")
    if config.get("architectures") not in (None, [], ["LlamaForCausalLM"]):
        refuse("architectures", "only LlamaForCausalLM can be converted")
    if config.get("quantization_config"):
        refuse(
            "quantization_config", "dequantise the model first; quantised weights cannot be trained further"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            refuse(key, "the project trains Llamas without biases; such a model would lose them")
    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "Llama's feed-forward layer is SwiGLU, whose activation is `silu`")


def _rope(path: Path, config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from either form: `rope_theta` + `rope_scaling`, or `rope_parameters` with both."""
    rope = dict(config.get("rope_parameters") or {}) or dict(config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise UserError(f"{path}: `partial_rotary_factor` is not 1: Llama rotates all channels of a head")
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(
            f"{path}: unknown rope type {kind!r}; only models with `llama3` scaling or none can be converted"
        )
    if lost := [key for key in _SCALING_KEYS if key not in rope]:
        raise UserError(f"{path}: rope scaling `llama3` lacks {', '.join(lost)}; copy the file again")
    return float(theta), RopeScaling(**{key: rope[key] for key in _SCALING_KEYS})


def model_from_hf(folder: Path, *, vocab_padding: int = 128) -> Shape:
    """Shape of the model in a Hugging Face folder.

    Args:
        folder: holds `config.json`.
        vocab_padding: padding multiple of the shape, which `config.json` does not contain.

    Raises:
        UserError: no `config.json`, a model that is not a plain Llama, or values that contradict each other.
    """
    path, config = _read(folder)
    _refuse_others(path, config)
    if lost := [key for key in _REQUIRED if key not in config]:
        raise UserError(f"{path}: `{lost[0]}` is missing; copy the file again")
    theta, scaling = _rope(path, config)
    # These are the defaults of transformers' LlamaConfig, which omits fields equal to its defaults.
    try:
        return Shape(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            attention_heads=config["num_attention_heads"],
            query_groups=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim"),
            vocab_size=config["vocab_size"],
            vocab_padding=vocab_padding,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=config.get("tie_word_embeddings", False),
            init_std=config.get("initializer_range", 0.02),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(
            f"{path}: {where + ': ' if where else ''}{fault['msg']} (got {fault['input']!r})"
        ) from None


def token_ids_from_hf(folder: Path) -> TokenIds:
    """Special tokens from `generation_config.json`, or from `config.json` if it has none."""
    _, config = _read(folder)
    generation = (
        read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    )
    merged = {**config, **{key: value for key, value in generation.items() if value is not None}}
    end = merged.get("eos_token_id")
    ends = tuple(end) if isinstance(end, list) else () if end is None else (end,)
    return TokenIds(merged.get("bos_token_id"), ends, merged.get("pad_token_id"))


def _eos(tokens: TokenIds) -> int | list[int] | None:
    return list(tokens.end) if len(tokens.end) > 1 else next(iter(tokens.end), None)


def hf_config(shape: Shape, *, dtype: str, tokens: TokenIds) -> dict[str, Any]:
    """Content of `config.json`.

    Args:
        shape: the model.
        dtype: type of the weights, in torch's spelling (`bfloat16`).
        tokens: special tokens.

    Returns:
        A configuration that transformers 4 and 5, vLLM, and llama.cpp read: RoPE is given as `rope_theta` and
        `rope_scaling`, from which the newer `rope_parameters` is derived.
    """
    scaling = shape.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokens.begin,
        "eos_token_id": _eos(tokens),
        "head_dim": shape.channels,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": shape.init_std,
        "intermediate_size": shape.ffn_hidden_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.attention_heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.query_groups,
        **({"pad_token_id": tokens.pad} if tokens.pad is not None else {}),
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **scaling.model_dump()},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def generation_config(tokens: TokenIds) -> dict[str, Any]:
    """Content of `generation_config.json`: begin and end tokens; otherwise greedy decoding."""
    values = {"bos_token_id": tokens.begin, "eos_token_id": _eos(tokens), "pad_token_id": tokens.pad}
    return {key: value for key, value in values.items() if value is not None}


def shape_differences(one: Shape, other: Shape) -> list[str]:
    """Differing fields that change the network's function, as `name: one != other`."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in _SAME)
    return [f"{name}: {a} != {b}" for name, a, b in pairs if a != b]


def check_same_shape(base: Shape, recipe: Shape, base_name: str, recipe_name: str) -> None:
    """Refuses a base model that differs from the recipe's.

    Raises:
        UserError: names each field that differs.
    """
    if differences := shape_differences(base, recipe):
        raise UserError(
            f"{base_name} is not the model of {recipe_name}: {'; '.join(differences)}; "
            "name the base model that the recipe was written for, or another recipe"
        )
