"""The documentation of recipe keys, as written at their definitions."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from emma.base.errors import UserError
from emma.recipes.compose import nearest
from emma.recipes.schema import Recipe
from emma.recipes.schema.optimisation import Optimisation

__all__ = ["KeyDocumentation", "explain"]


@dataclass(frozen=True)
class KeyDocumentation:
    """What a key means."""

    key: str
    """Dotted key; `<name>` stands for any name that a recipe chooses."""
    type: str
    """Type in words, e.g. `whole number` or `one of cosine, linear`."""
    default: str
    """Default as YAML, or `required`."""
    description: str
    """Meaning, unit and limits."""


def explain(key: str = "") -> list[KeyDocumentation]:
    """A key and, if it is a section, the keys in it.

    Args:
        key: dotted, e.g. `parallelism` or `data.mix.components.code.share`; empty for the sections of a recipe. Keys of
            recipes/optimisations begin with `optimisation`.

    Raises:
        UserError: there is no such key; the message names the nearest one.
    """
    section: Any = Recipe
    field: FieldInfo | None = None
    walked: list[str] = []
    parts = key.split(".") if key else []
    if parts[:1] == ["optimisation"]:
        section, walked, parts = Optimisation, parts[:1], parts[1:]
    for part in parts:
        fields = _fields(section)
        if fields is None:
            inner = _values(section)
            if inner is None:
                raise UserError(f"`{'.'.join(walked)}` has no keys below it")
            section = inner
            walked.append("<name>")
            continue
        if part not in fields:
            where = f"`{'.'.join(walked)}`" if walked else "a recipe"
            raise UserError(f"{where} has no key `{part}`; {nearest(part, list(fields))}")
        field = fields[part]
        section = _inner(field.annotation)
        walked.append(part)
    path = ".".join(walked)
    found = [_document(path, field)] if field is not None and walked[-1] != "<name>" else []
    below = _fields(section) or {}
    if not below and (below := _fields(_values(section)) or {}):
        path += ".<name>"
    return found + [_document(f"{path}.{name}".lstrip("."), below[name]) for name in below]


def _inner(annotation: Any) -> Any:
    """The type without its `| None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _fields(annotation: Any) -> dict[str, FieldInfo] | None:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    meanings = _docstrings(annotation)
    fields = {}
    for name, field in annotation.model_fields.items():
        fields[field.alias or name] = documented = copy(field)
        documented.description = meanings.get(name)
    return fields


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """What stands under each field, read from the source only when somebody asks: pydantic's own
    `use_attribute_docstrings` parses every class at import, a sixth of the time in which `emma plan` answers."""
    found = {}
    for part in reversed(section.__mro__):
        if not issubclass(part, BaseModel) or part is BaseModel:
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = below.value.value
    return found


def _values(annotation: Any) -> Any:
    """Type of a mapping's values or a list's items; None for anything else."""
    origin = typing.get_origin(annotation)
    if origin in (dict, list):
        return _inner(typing.get_args(annotation)[-1])
    return None


def _document(key: str, field: FieldInfo) -> KeyDocumentation:
    section = _inner(field.annotation)
    text = field.description or (section.__doc__ if isinstance(section, type) else "") or ""
    return KeyDocumentation(
        key=key,
        type=_type(field.annotation),
        default=_default(field.get_default(call_default_factory=True)),
        description=" ".join(text.split()),
    )


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its keys' defaults"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "none"}


def _type(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"names → {_type(arguments[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    return "section"
