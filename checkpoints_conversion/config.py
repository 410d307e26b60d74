"""Hugging Face's `config.json` ⇄ a recipe's model shape. Needs no torch."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.limits import beyond
from emma.recipes.schema.model import Shape

__all__ = [
    "TokenIds",
    "check_same_shape",
    "generation_config",
    "hf_config",
    "model_from_hf",
    "read_settings",
    "shape_differences",
    "token_ids_from_hf",
    "validated_shape",
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
# Fields of a shape and their keys in `config.json`.
_KEYS = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "attention_heads": "num_attention_heads",
    "query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_LARGEST_SETTINGS = 16 << 20  # bytes; published ones have some kilobytes
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


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder: `config.json` and the like.

    Raises:
        UserError: it is missing, not a file, too large, not JSON, or not an object.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; copy the model again")
    if path.is_file() and (size := path.stat().st_size) > _LARGEST_SETTINGS:
        raise UserError(f"{path}: {size} bytes are no settings; copy the file again")
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__} instead of an object; copy the file again")
    return value


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what Megatron's Llama cannot express, with one specific message per case."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"{path}: `{key}` is {_shown(config.get(key))}: {why}")

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


def _rope(path: Path, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """Base and scaling from either form: `rope_theta` + `rope_scaling`, or `rope_parameters` with both."""
    forms = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key) is not None}
    for key, value in forms.items():
        if not isinstance(value, dict):
            raise UserError(f"{path}: `{key}` is {_shown(value)}, not an object; copy the file again")
    rope = dict(forms.get("rope_parameters") or forms.get("rope_scaling") or {})
    theta = config.get("rope_theta")
    inner = rope.pop("rope_theta", None)
    if None not in (theta, inner) and theta != inner:
        raise UserError(
            f"{path}: `rope_theta` is {_shown(theta)} and, within the RoPE parameters, {_shown(inner)}; correct one"
        )
    theta = 10000.0 if theta is None and inner is None else inner if theta is None else theta
    kinds = [rope.pop(key, None) for key in ("rope_type", "type")]
    kind = kinds[0] or kinds[1] or "default"
    if None not in kinds and kinds[0] != kinds[1]:
        raise UserError(f"{path}: rope type is {_shown(kinds[0])} and {_shown(kinds[1])}; correct one")
    if rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise UserError(f"{path}: `partial_rotary_factor` is not 1: Llama rotates all channels of a head")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"{path}: unknown rope type {_shown(kind)}; only models with `llama3` scaling or none can be converted"
        )
    if lost := [key for key in _SCALING_KEYS if key not in rope]:
        raise UserError(f"{path}: rope scaling `llama3` lacks {', '.join(lost)}; copy the file again")
    return theta, {key: rope[key] for key in _SCALING_KEYS}


def model_from_hf(folder: Path, *, vocab_padding: int = 128) -> Shape:
    """Shape of the model in a Hugging Face folder.

    Args:
        folder: holds `config.json`.
        vocab_padding: padding multiple of the shape, which `config.json` does not contain.

    Raises:
        UserError: no `config.json`, a model that is not a plain Llama, or values that contradict each other.
    """
    path = folder / "config.json"
    config = read_settings(path)
    _refuse_others(path, config)
    if lost := [key for key in _REQUIRED if key not in config]:
        raise UserError(f"{path}: `{lost[0]}` is missing; copy the file again")
    theta, scaling = _rope(path, config)
    values = {field: config[key] for field, key in _KEYS.items() if config.get(key) is not None}
    # These are the defaults of transformers' LlamaConfig, which omits fields equal to its defaults.
    defaults = {
        "query_groups": config["num_attention_heads"],
        "max_position_embeddings": 2048,
        "norm_epsilon": 1e-6,
        "tie_embeddings": False,
        "init_std": 0.02,
    }
    extra = {"vocab_padding": vocab_padding, "rope_theta": theta, "rope_scaling": scaling}
    return validated_shape({**defaults, **values, **extra}, str(path), _KEYS)


def validated_shape(values: Mapping[str, Any], where: str, names: Mapping[str, str]) -> Shape:
    """A shape of values that come from outside.

    Args:
        values: fields of the shape.
        where: what they come from, for the message.
        names: what the fields are called there.

    Raises:
        UserError: the first value that is wrong, by its name there.
    """
    for key, value, bound in beyond(values, ("model",)):
        raise UserError(
            f"{where}: `{names.get(key[-1], key[-1])}` is {_shown(value)}: at most {bound:,.12g} can be converted, "
            "several times the largest published (recipes/limits.yaml); the file is damaged"
        )
    try:
        return Shape.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
    field = str(fault["loc"][-1]) if fault["loc"] else ""
    name = f"`{names.get(field, field)}` is {_shown(fault['input'])}: " if field else ""
    raise UserError(f"{where}: {name}{fault['msg']}")


def _ids(path: Path, key: str, value: Any, vocab_size: Any) -> tuple[int, ...]:
    """One special token or several, each a row of the embedding."""
    found = value if isinstance(value, list) else [value]
    if wrong := [one for one in found if type(one) is not int or not 0 <= one < vocab_size]:
        raise UserError(
            f"{path}: `{key}` is {_shown(value)}: {_shown(wrong[0])} is no token id from 0 to {vocab_size - 1}; correct "
            "it, or remove the key if the model has no such token"
        )
    return tuple(found)


def token_ids_from_hf(folder: Path) -> TokenIds:
    """Special tokens from `generation_config.json`, or from `config.json` if it has none.

    Raises:
        UserError: a special token is not an id of the vocabulary.
    """
    vocab_size = model_from_hf(folder).vocab_size
    found: dict[str, tuple[int, ...]] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if name == "config.json" or path.exists():
            values = read_settings(path)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if values.get(key) is not None:
                    found[key] = _ids(path, key, values[key], vocab_size)
    begin, end, pad = (found.get(key, ()) for key in ("bos_token_id", "eos_token_id", "pad_token_id"))
    return TokenIds(next(iter(begin), None), end, next(iter(pad), None))


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
