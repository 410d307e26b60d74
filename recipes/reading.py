"""Read YAML into plain values, with the place of each; within limits that no recipe comes near."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from emma.base.errors import UserError

__all__ = ["DEEPEST", "Composed", "Key", "read_value", "read_yaml"]

DEEPEST = 32
"""No recipe is nested deeper; an anchor that contains itself is."""

# A few lines of anchors can stand for billions of values.
_MOST_VALUES = 100_000
_MOST_CHARACTERS = 2**20

Key = tuple[str, ...]


class Composed:
    """Plain values of a recipe and, for each key, the `file:line` it came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[Key, str] = {}

    def origin(self, key: Sequence[str | int]) -> str | None:
        """Origin of `key` or of what was given within it; if there is none, of the innermost key that contains it."""
        path = tuple(str(part) for part in key)
        if path and path not in self.origins:
            within = (origin for given, origin in self.origins.items() if given[: len(path)] == path)
            if (origin := next(within, None)) is not None:
                return origin
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.origins.get(())

    def drop(self, name: str) -> None:
        """Removes a top-level key and its origins."""
        self.values.pop(name, None)
        self.origins = {key: origin for key, origin in self.origins.items() if key[:1] != (name,)}

    def merge(self, other: Composed, at: Key = ()) -> None:
        """Lays `other` over the values at `at`: mappings merge key by key, anything else is replaced."""
        target = self.values
        for part in at:
            target = target.setdefault(part, {})
        self._merge(target, other.values, other, at, ())

    def _merge(
        self, target: dict[str, Any], source: Mapping[str, Any], other: Composed, at: Key, path: Key
    ) -> None:
        for name, value in source.items():
            here = (*path, name)
            if isinstance(value, dict) and isinstance(target.get(name), dict):
                self._merge(target[name], value, other, at, here)
            else:
                target[name] = value
                depth = len(here)
                self.origins.update({(*at, *k): o for k, o in other.origins.items() if k[:depth] == here})
            if here in other.origins:
                self.origins[(*at, *here)] = other.origins[here]


def read_yaml(path: Path) -> Composed:
    """Reads one YAML 1.2 file.

    Raises:
        UserError: the file is missing, is not UTF-8 or YAML, has a key twice, is not a mapping, or is too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return copy.deepcopy(_parse(path, text))


@functools.lru_cache(maxsize=256)
def _parse(path: Path, text: str) -> Composed:
    """Cached, since parsing takes 20 times as long as reading and a sweep composes hundreds of recipes from few files."""
    composed = Composed()
    reader = _Reader(str(path), lines=True, origins=composed.origins)
    composed.origins[()] = str(path)
    values = reader.read(text)
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    composed.values = values or {}
    return composed


def read_value(text: str, place: str) -> Any:
    """One YAML value, e.g. of an override.

    Args:
        text: YAML: `3`, `[a, b]`, nothing.
        place: what a message calls it.

    Raises:
        UserError: it is not valid YAML, or too large.
    """
    return _Reader(place, lines=False, origins={}).read(text)


class _Composer(Composer):
    """Stops at the deepest level that is allowed: Python's own limit takes seconds to reach."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth > DEEPEST:
            raise RecursionError
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Reader:
    """Turns YAML into plain values and records the place of each."""

    def __init__(self, place: str, *, lines: bool, origins: dict[Key, str]) -> None:
        self.place, self.lines, self.origins = place, lines, origins
        self.yaml, self.values = YAML(typ="safe", pure=True), 0
        self.yaml.Composer = _Composer

    def read(self, text: str) -> Any:
        """The value of the only document in `text`; None for an empty one."""
        if len(text) > _MOST_CHARACTERS:
            raise UserError(
                f"{self.place}: has {len(text):,} characters; a recipe has at most {_MOST_CHARACTERS:,}"
            )
        try:
            node = self.yaml.compose(text)
            return None if node is None else self.value(node, ())
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark is not None and self.lines else ""
            problem = str(error.problem or error.context).splitlines()[0]
            raise UserError(f"{self.place}{line}: not valid YAML: {problem}") from None
        except YAMLError as error:
            raise UserError(f"{self.place}: not valid YAML: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise UserError(f"{self.place}: nested more than {DEEPEST} deep, or in itself") from None

    def value(self, node: Node, at: Key) -> Any:
        """Any node; `at` is its key."""
        self.values += 1
        if self.values > _MOST_VALUES:
            raise UserError(
                f"{self._line(node)}: stands for more than {_MOST_VALUES:,} values. Fix: anchors (&) of anchors multiply; "
                "write out what the recipe needs"
            )
        if len(at) > DEEPEST:
            raise UserError(f"{self._line(node)}: nested more than {DEEPEST} deep, or in itself")
        if isinstance(node, MappingNode):
            return self._mapping(node, at)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*at, str(index))) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: MappingNode, at: Key) -> dict[str, Any]:
        """A mapping; keys from a merge (<<) have no line of their own."""
        result: dict[str, Any] = {}
        own: set[str] = set()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    result = {**self._merged(source, at), **result}
                continue
            if isinstance(key, MappingNode | SequenceNode):
                raise UserError(f"{self._line(key)}: not valid YAML for a recipe: a key is a word")
            name = str(self._scalar(key))
            if name in own:
                raise UserError(f'{self._line(key)}: not valid YAML: found duplicate key "{name}"')
            own.add(name)
            self.origins[(*at, name)] = self._line(key)
            result[name] = self.value(value, (*at, name))
        return result

    def _merged(self, node: Node, at: Key) -> dict[str, Any]:
        """The mapping that a merge brings in, which must not pass for this mapping's own lines."""
        kept, self.origins = self.origins, {}
        try:
            # A merge nests, though its keys do not: without the extra part, one that contains itself would not end.
            merged = self.value(node, (*at, "<<"))
        finally:
            self.origins = kept
        if not isinstance(merged, dict):
            raise UserError(
                f"{self._line(node)}: not valid YAML: `<<` takes a mapping, or a list of mappings"
            )
        return merged

    def _item(self, node: Node, at: Key) -> Any:
        self.origins[at] = self._line(node)
        return self.value(node, at)

    def _scalar(self, node: Node) -> Any:
        try:
            return self.yaml.constructor.construct_object(node)
        except (ValueError, OverflowError, TypeError, LookupError) as error:
            # Numbers of thousands of digits, dates that do not exist, tags that do not fit.
            problem = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise UserError(f"{self._line(node)}: not valid YAML: {problem}") from None

    def _line(self, node: Node) -> str:
        return f"{self.place}:{node.start_mark.line + 1}" if self.lines else self.place
