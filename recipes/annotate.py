"""A resolved recipe as YAML with the origin of each value."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from emma.recipes.compose import ROOT
from emma.recipes.reading import Composed
from emma.recipes.schema import Recipe

__all__ = ["annotated_yaml"]


def annotated_yaml(recipe: Recipe, composed: Composed) -> str:
    """YAML of the recipe, each value followed by its origin: `recipes/runs/….yaml:12`, `command line` or `default`."""
    text = StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump(_annotated(recipe.to_dict(), composed, ()), text)
    return f"# sha256 {recipe.sha256}\n{text.getvalue()}"


def _annotated(values: dict[str, Any], composed: Composed, at: tuple[str, ...]) -> CommentedMap:
    result = CommentedMap()
    for name, value in values.items():
        here = (*at, name)
        if isinstance(value, dict) and value:
            result[name] = _annotated(value, composed, here)
            continue
        if isinstance(value, list):
            # On one line, which leaves room for the comment.
            result[name] = _flow(value)
        else:
            result[name] = value
        result.yaml_add_eol_comment(_place(composed.origins.get(here)), name)
    return result


def _flow(value: list[Any]) -> Any:
    sequence = YAML().seq(value)
    sequence.fa.set_flow_style()
    return sequence


def _place(origin: str | None) -> str:
    if origin is None:
        return "default"
    path, colon, line = origin.partition(":")
    if Path(path).is_relative_to(ROOT):
        return f"recipes/{Path(path).relative_to(ROOT)}{colon}{line}"
    return origin
