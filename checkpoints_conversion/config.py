"""Hugging Face's `config.json` ⇄ a recipe's model shape. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.checkpoints_conversion.config_layers import (
    read_kinds,
    read_rope,
    refuse,
    shown,
    write_kinds,
    write_rope,
)
from emma.recipes.limits import beyond
from emma.recipes.schema.architecture import Architecture, architecture, architecture_names
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

# Fields that neither the weights nor their meaning depend on: they may differ between a base model and the recipe that
# continues its training. All others must be the same, some of them as what they come to.
_MAY_DIFFER = {"vocab_padding", "max_position_embeddings", "init_std"}
_COMES_TO = {"head_dim": "channels", "layer_kinds": "kinds", "query_scale": "score_scale"}
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
_MOST_LAYERS = 1000  # recipes/limits.yaml refuses more
_NULLABLE = ("query_groups", "head_dim", "sliding_window")
_LARGEST_SETTINGS = 16 << 20  # bytes; published ones have some kilobytes
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


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


def design_of(
    path: Path, config: Mapping[str, Any], *, text_only: bool = False
) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that a `config.json` names, and the settings of the text model in it.

    Args:
        path: the file, for messages.
        config: its content.
        text_only: take the text model out of a model of images and text.

    Raises:
        UserError: no known architecture.
    """
    known = [architecture(name) for name in architecture_names()]
    types = ", ".join(f"`{design.huggingface.model_type}`" for design in known)
    kind = config.get("model_type")
    for design in known:
        part = design.huggingface.text_part
        if part is not None and kind == part.model_type:
            text = config.get(part.config)
            if not text_only or not isinstance(text, dict):
                left = ", ".join(f"{name}*" for name in part.left_behind)
                why = f"a model of images and text. --text-only takes its text model and leaves {left} behind"
                refuse(path, config, "model_type", why)
            tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
            return design, {**tied, **text}
    for key, value in config.items():
        # For all architectures: what no part of Megatron's network can express.
        if key in _EXPERTS and value:
            refuse(path, config, key, "mixtures of experts cannot be converted")
        if key.endswith("softcapping") and value is not None:
            refuse(
                path,
                config,
                key,
                "Megatron's fused attention has no soft caps, so such a model cannot be trained",
            )
        if key == "vision_config" and value:
            refuse(path, config, key, "only models of text alone can be converted")
    named = [design for design in known if design.huggingface.model_type == kind]
    if not named:
        why = f"only models of type {types} can be converted (docs/add_a_base_model.md adds others)"
        refuse(path, config, "model_type", why)
    return named[0], dict(config)


def _refuse_others(path: Path, config: Mapping[str, Any], design: Architecture) -> None:
    """Refuses what the architecture's file does not know, with one specific message per case."""
    names = design.huggingface.architectures
    if config.get("architectures") not in (None, [], *([name] for name in names)) and config.get(
        "model_type"
    ) == (design.huggingface.model_type):
        refuse(path, config, "architectures", f"only {' or '.join(names)} can be converted")
    if config.get("quantization_config"):
        why = "dequantise the model first; quantised weights cannot be trained further"
        refuse(path, config, "quantization_config", why)
    for key, value in design.huggingface.constant.items():
        if config.get(key) not in (None, value):
            why = f"architecture {design.name} has {json.dumps(value)}; another value is another network, which is lost"
            refuse(path, config, key, why)


def model_from_hf(folder: Path, *, vocab_padding: int = 128, text_only: bool = False) -> Shape:
    """Shape of the model in a Hugging Face folder.

    Args:
        folder: holds `config.json`.
        vocab_padding: padding multiple of the shape, which `config.json` does not contain.
        text_only: take the text model out of a model of images and text.

    Raises:
        UserError: no `config.json`, a model of no known architecture, or values that contradict each other.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Fix: name the folder of a Hugging Face model")
    if not path.exists():
        fix = "name the model's folder"
        if any(folder.glob("iter_*")):
            fix += "; it holds Megatron checkpoints, which `emma convert megatron-to-hf` exports"
        raise UserError(f"{path}: no such file, so {folder} holds no Hugging Face model. Fix: {fix}")
    design, config = design_of(path, read_settings(path), text_only=text_only)
    _refuse_others(path, config, design)
    huggingface = design.huggingface
    keys = _KEYS | dict(huggingface.keys.items())
    for own in ("layer_kinds", "rope_theta_sliding"):  # read apart
        keys.pop(own, None)
    defaults = huggingface.defaults
    if lost := [key for key in _REQUIRED if key not in config and key not in defaults]:
        raise UserError(f"{path}: `{lost[0]}` is missing; copy the file again")
    values: dict[str, Any] = {"architecture": design.name, "vocab_padding": vocab_padding}
    for field, key in keys.items():
        # What is absent has transformers' default; null says none, where there can be none.
        value = config.get(key, defaults.get(key))
        if value is None and field not in _NULLABLE:
            value = defaults.get(key)
        if value is not None:
            values[field] = value
    values.setdefault("query_groups", values.get("attention_heads"))
    values |= read_rope(path, config, design)
    layers = values.get("layers")
    if (
        isinstance(layers, int)
        and 0 < layers <= _MOST_LAYERS
        and (kinds := read_kinds(path, config, design, layers)) is not None
    ):
        values["layer_kinds"] = kinds
        if "sliding" not in kinds:
            values.pop("sliding_window", None)
    return validated_shape(values, str(path), keys)


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
            f"{where}: `{names.get(key[-1], key[-1])}` is {shown(value)}: at most {bound:,.12g} can be converted, "
            "several times the largest published (recipes/limits.yaml); the file is damaged"
        )
    try:
        return Shape.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
    field = str(fault["loc"][-1]) if fault["loc"] else ""
    name = f"`{names.get(field, field)}` is {shown(fault['input'])}: " if field else ""
    raise UserError(f"{where}: {name}{fault['msg']}")


def _ids(path: Path, key: str, value: Any, vocab_size: Any) -> tuple[int, ...]:
    """One special token or several, each a row of the embedding."""
    found = value if isinstance(value, list) else [value]
    if wrong := [one for one in found if type(one) is not int or not 0 <= one < vocab_size]:
        raise UserError(
            f"{path}: `{key}` is {shown(value)}: {shown(wrong[0])} is no token id from 0 to {vocab_size - 1}; correct "
            "it, or remove the key if the model has no such token"
        )
    return tuple(found)


def token_ids_from_hf(folder: Path, vocab_size: int) -> TokenIds:
    """Special tokens from `generation_config.json`, or from `config.json` if it has none.

    Raises:
        UserError: a special token is not an id of the vocabulary.
    """
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
        `rope_scaling`, from which the newer `rope_parameters` is derived, and by kind of layer where it depends on it.
    """
    huggingface = shape.design.huggingface
    fixed = {**huggingface.constant, **huggingface.written}
    values = {
        **{key: value for key, value in fixed.items() if value is not None},
        **{key: getattr(shape, field) for field, key in _KEYS.items()},
        "architectures": huggingface.architectures[:1],
        "bos_token_id": tokens.begin,
        "eos_token_id": _eos(tokens),
        "head_dim": shape.channels,
        "model_type": huggingface.model_type,
        "pad_token_id": tokens.pad,  # null too: some families have a default of their own
        **write_rope(shape),
        **write_kinds(shape),
        "torch_dtype": dtype,
    }
    return dict(sorted(values.items()))


def generation_config(tokens: TokenIds) -> dict[str, Any]:
    """Content of `generation_config.json`: begin and end tokens; otherwise greedy decoding."""
    values = {"bos_token_id": tokens.begin, "eos_token_id": _eos(tokens), "pad_token_id": tokens.pad}
    return {key: value for key, value in values.items() if value is not None}


def shape_differences(one: Shape, other: Shape) -> list[str]:
    """Differing fields that change the network's function, as `name: one != other`."""
    if one.architecture != other.architecture:
        return [f"architecture: {one.architecture} != {other.architecture}"]
    fields = (_COMES_TO.get(name, name) for name in Shape.model_fields if name not in _MAY_DIFFER)
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in fields)
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
