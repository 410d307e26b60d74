"""What no recipe means to say (`limits.yaml`): numbers beyond all reason, line breaks in what reaches a shell, empty names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import translate
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from emma.base.errors import RecipeError
from emma.recipes.reading import read_yaml

__all__ = ["beyond", "check_limits", "control_character"]

_TABLE = Path(__file__).with_name("limits.yaml")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Key = tuple[str, ...]
Origin = Callable[[Sequence[str | int]], str | None]


def check_limits(values: Mapping[str, Any], origin: Origin, at: Key = ()) -> None:
    """Checks plain values before the schema sees them.

    Args:
        values: keys and values as read from YAML.
        origin: `file:line` of a key, for the message.
        at: the key that they stand under.

    Raises:
        RecipeError: the first value that is out of bounds.
    """
    for key, value in _leaves(values, at):
        problem = _fault(".".join(key), value)
        if problem is not None:
            raise RecipeError(".".join(key), *problem, origin(key[len(at) :]))


def beyond(values: Mapping[str, Any], at: Key = ()) -> Iterator[tuple[Key, float, float]]:
    """Numbers that are out of bounds: key, value, bound; `values` and `at` as for `check_limits`."""
    for key, value in _leaves(values, at):
        if isinstance(value, int | float) and not isinstance(value, bool):
            bound = _bound(".".join(key), value)
            if not abs(value) <= bound:
                yield key, value, bound


def _leaves(value: Any, at: Key) -> Iterator[tuple[Key, Any]]:
    """Scalars with their keys; a mapping's own keys come as `(key, name)` where they could do harm."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if control_character(str(name)) or (
                at[-1:] == ("environment",) and not _VARIABLE.fullmatch(str(name))
            ):
                yield at, _Name(str(name))
            yield from _leaves(inner, (*at, str(name)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*at, str(index)))
    else:
        yield at, value


class _Name(str):
    """A key that is not a name."""

    __slots__ = ()


def _fault(key: str, value: Any) -> tuple[str, str] | None:
    """Problem and fix, or None."""
    if isinstance(value, _Name):
        return f"{str(value)!r} is not a name", "use letters, digits and underscores"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        bound, shown = _bound(key, value), str(value)
        if not abs(value) <= bound:  # NaN too
            shown = shown if len(shown) <= 30 else f"{shown[:27]}… ({len(shown)} characters)"
            problem = "out of range" if isinstance(value, int) or isfinite(value) else "not finite"
            return f"{shown} is {problem}", f"use at most {bound:,.12g} (recipes/limits.yaml says why)"
    if isinstance(value, str):
        if not value.strip() and not _listed(key, "empty"):
            return f"{value!r} is empty", "write something, or remove the key"
        bad = control_character(value)
        if bad and not (_listed(key, "lines") and not control_character(re.sub(r"[\n\t]", "", value))):
            return f"{value[:60]!r} has a line break or another control character ({bad})", "remove it"
    return None


def control_character(text: str) -> str | None:
    """Unicode's name for the first character that ends a line or controls a terminal, as U+000A."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
            return f"U+{ord(character):04X}"
    return None


def _bound(key: str, value: float) -> float:
    table = _table()
    exact = table["at_most"].get(key)
    if exact is not None:
        return float(exact)
    for pattern, bound in table["patterns"]:
        if pattern.match(key):
            return float(bound)
    return float(table["integers" if isinstance(value, int) else "numbers"]["at_most"])


def _listed(key: str, kind: str) -> bool:
    return any(pattern.match(key) for pattern in _table()[kind])


@cache
def _table() -> dict[str, Any]:
    table = read_yaml(_TABLE).values
    bounds = table["at_most"]
    table["patterns"] = [(re.compile(translate(key)), bound) for key, bound in bounds.items() if "*" in key]
    for kind in ("lines", "empty"):
        table[kind] = [re.compile(translate(key)) for key in table[kind]]
    return table
