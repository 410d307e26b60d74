"""What `config.json` says of a model's layers: rotary embeddings, kinds. Needs no torch."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from emma.base.errors import UserError
from emma.recipes.schema.architecture import Architecture
from emma.recipes.schema.model import RopeScaling, Shape

__all__ = ["read_kinds", "read_rope", "refuse", "shown", "write_kinds", "write_rope"]

_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    return reprlib.repr(value)


def refuse(path: Path, config: Mapping[str, Any], key: str, why: str) -> NoReturn:
    """Raises a UserError that names file, key and value."""
    raise UserError(f"{path}: `{key}` is {shown(config.get(key))}: {why}")


def read_rope(path: Path, config: Mapping[str, Any], design: Architecture) -> dict[str, Any]:
    """Bases and scaling in each of their forms: `rope_theta` and `rope_scaling`; `rope_parameters` with both; the same
    for each kind of layer. Each form that is there must say the same."""
    own = design.huggingface.keys.get("rope_theta_sliding", "")
    forms: list[tuple[Any, dict[str, Any]]] = []
    sliding: list[Any] = [config.get(own)]
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"{path}: `{key}` is {shown(value)}, not an object; copy the file again")
        if design.network.rope == "by_kind" and key == "rope_parameters" and "full_attention" in value:
            window = dict(value.get("sliding_attention") or {})
            sliding.append(window.pop("rope_theta", None))
            if window.pop("rope_type", "default") != "default" or window:
                raise UserError(
                    f"{path}: the RoPE of sliding layers is {shown(value['sliding_attention'])}: only its base can be converted"
                )
            value = value["full_attention"]
        value = dict(value)
        forms.append((value.pop("rope_theta", None), value))
    found = [theta for theta, _ in forms if theta is not None]
    above = config.get("rope_theta")
    theta = _agreed(path, "rope_theta", [above, *found])
    if theta is None:
        theta = design.huggingface.defaults.get("rope_theta")
    scalings = [_scaling(path, config, design, rope) for _, rope in forms]
    if not forms and (silent := design.huggingface.defaults.get("rope_scaling")):
        if "rope_scaling" in config:
            why = f"to transformers 4 no scaling, to transformers 5 {json.dumps(silent)}; write this, or the type `default`"
            refuse(path, config, "rope_scaling", why)
        scalings = [_scaling(path, config, design, silent)]
    values = {"rope_theta": theta, "rope_scaling": _agreed(path, "rope_scaling", scalings)}
    window_theta = _agreed(path, own or "rope_theta of sliding layers", sliding)
    if own:
        values["rope_theta_sliding"] = (
            design.huggingface.defaults.get(own) if window_theta is None else window_theta
        )
    elif window_theta not in (None, theta):
        raise UserError(
            f"{path}: sliding layers have the RoPE base {shown(window_theta)}, the others {shown(theta)}"
        )
    return values


def _agreed(path: Path, name: str, values: Sequence[Any]) -> Any:
    """The one value among those that are given."""
    given = [value for value in values if value is not None]
    for other in given[1:]:
        if other != given[0]:
            raise UserError(
                f"{path}: `{name}` is {shown(given[0])} and, within the RoPE parameters, {shown(other)}; correct one"
            )
    return given[0] if given else None


def _scaling(
    path: Path, config: Mapping[str, Any], design: Architecture, given: Mapping[str, Any]
) -> dict[str, Any] | None:
    rope = dict(given)
    kinds = [rope.pop(key, None) for key in ("rope_type", "type")]
    kind = kinds[0] or kinds[1] or "default"
    if None not in kinds and kinds[0] != kinds[1]:
        raise UserError(f"{path}: rope type is {shown(kinds[0])} and {shown(kinds[1])}; correct one")
    if rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise UserError(
            f"{path}: `partial_rotary_factor` is not 1: only models that rotate all channels of a head can be converted"
        )
    if kind == "default":
        return None
    if kind not in design.network.rope_scaling:
        known = " or ".join(f"`{one}`" for one in design.network.rope_scaling)
        has = f"with {known} scaling or none" if known else "without scaling"
        raise UserError(
            f"{path}: unknown rope type {shown(kind)}; only models of architecture {design.name} {has} can be converted"
        )
    names = RopeScaling.constants[kind]
    needed = [name for name in names if name not in RopeScaling.later]
    if lost := [key for key in needed if rope.get(key) is None]:
        raise UserError(f"{path}: rope scaling `{kind}` lacks {', '.join(lost)}; copy the file again")
    # `truncate` is transformers' word for whole channels, its default.
    unknown = [
        key
        for key in rope
        if key not in names and rope[key] is not None and (key, rope[key]) != ("truncate", True)
    ]
    if kind != "llama3" and unknown:
        raise UserError(
            f"{path}: rope scaling `{kind}` has {unknown[0]} {shown(rope[unknown[0]])}, which cannot be converted"
        )
    values = {key: rope[key] for key in names if rope.get(key) is not None}
    if kind == "yarn" and values.get("attention_factor") is not None:
        # Published files write the default out.
        plain = RopeScaling(type="yarn", factor=float(values["factor"])).sharpening
        if abs(float(values["attention_factor"]) - plain) < 1e-9:
            del values["attention_factor"]
    return {"type": kind, **values}


def read_kinds(path: Path, config: Mapping[str, Any], design: Architecture, layers: int) -> list[str] | None:
    """Kinds of the layers, as short as they repeat; None for what the window says."""
    spelled, types = design.huggingface.keys.get("layer_kinds"), config.get("layer_types")
    settings = {**design.huggingface.defaults, **config}
    if spelled != "layer_types" and types is not None and set(types) != {"full_attention"}:
        why = f"architecture {design.name} has layers of one kind; such a model would lose the others"
        refuse(path, config, "layer_types", why)
    if spelled == "no_rope_layers":
        rotated = config.get("no_rope_layers")
        if rotated is None:
            rotated = _last_of_each(settings.get("no_rope_layer_interval"), layers, 0, 1)
        found = ["full" if one else "nope" for one in rotated]
    elif spelled == "layer_types":
        if types is None:
            types = _last_of_each(settings.get("sliding_window_pattern"), layers, *_LAYER_TYPES)
        if unknown := sorted(set(map(str, types)) - _LAYER_TYPES.keys()):
            refuse(path, config, "layer_types", f"{unknown[0]} is no kind of layer that can be converted")
        found = [_LAYER_TYPES[one] for one in types]
    else:
        return None
    if len(found) != layers:
        raise UserError(
            f"{path}: `{spelled}` is for {len(found)} layers, but `num_hidden_layers` is {layers}; correct one"
        )
    length = next(n for n in range(1, layers + 1) if all(found[i] == found[i % n] for i in range(layers)))
    return found[:length]


def _last_of_each(every: Any, layers: int, last: Any, others: Any) -> list[Any]:
    """`last` for the last of each `every` layers, `others` for the others."""
    if not isinstance(every, int) or every < 1:
        raise UserError(
            f"layers of two kinds repeat after {shown(every)}, which is no number of layers; correct config.json"
        )
    return [last if (index + 1) % every == 0 else others for index in range(layers)]


def write_rope(shape: Shape) -> dict[str, Any]:
    """The keys that `read_rope` reads, in each form that a library knows."""
    keys = shape.design.huggingface.keys
    scaling = None if shape.rope_scaling is None else _written(shape.rope_scaling)
    if scaling is None and "rope_scaling" in shape.design.huggingface.defaults:
        scaling = {"rope_type": "default"}  # said, because silence means the family's own scaling
    values: dict[str, Any] = {"rope_theta": shape.rope_theta, "rope_scaling": scaling}
    if shape.network.rope == "by_kind":
        sliding, _ = shape.rope("sliding")
        if "rope_theta_sliding" in keys:
            values[keys["rope_theta_sliding"]] = sliding
        full = {"rope_type": "default", **(scaling or {}), "rope_theta": shape.rope_theta}
        window = {"rope_type": "default", "rope_theta": sliding}
        values["rope_parameters"] = {"full_attention": full, "sliding_attention": window}
    return values


def _written(scaling: RopeScaling) -> dict[str, Any]:
    constants = {name: getattr(scaling, name) for name in RopeScaling.constants[scaling.type]}
    return {
        "rope_type": scaling.type,
        **{key: value for key, value in constants.items() if value is not None},
    }


def write_kinds(shape: Shape) -> dict[str, Any]:
    """The keys that `read_kinds` reads, the window, and the scale of queries."""
    keys = shape.design.huggingface.keys
    values: dict[str, Any] = {}
    if "sliding_window" in keys:
        values[keys["sliding_window"]] = shape.sliding_window
    if "query_scale" in keys:
        scale = shape.score_scale
        values[keys["query_scale"]] = int(scale) if scale == int(scale) else scale
    if keys.get("layer_kinds") == "no_rope_layers":
        values["no_rope_layers"] = [int(kind != "nope") for kind in shape.kinds]
    elif keys.get("layer_kinds") == "layer_types":
        words = {kind: word for word, kind in _LAYER_TYPES.items()}
        values["layer_types"] = [words[kind] for kind in shape.kinds]
        every = len(shape.layer_kinds or ())
        if shape.kinds[:every] == ("sliding",) * (every - 1) + ("full",) and every > 1:
            values["sliding_window_pattern"] = every  # of transformers before layer_types
    return values
